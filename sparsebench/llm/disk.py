"""A language model whose blocks stay in a folder of safetensors and come into memory one by one.

Embeddings, head, norms and buffers are small and stay. Of a block its parameters have no memory
(torch's device ``meta``) but while it is loaded; what pruning made of it is done again each time,
by what ``finished`` holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsebench.errors import UserError
from sparsebench.llm.layers import Block, device_of, find_blocks


class Disk:
    """The weights of a model, by name, in the safetensors files of a folder.

    Attributes:
        finished: by name of a block, what to do after its weights have been read.
    """

    def __init__(self, folder: Path) -> None:
        """Look what is there.

        Args:
            folder: of transformers.

        Raises:
            UserError: there are no safetensors files, or one is damaged.
        """
        self.folder = folder
        self.files: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with _opened(path) as file:
                self.files |= dict.fromkeys(file.keys(), path)
        if not self.files:
            raise UserError(
                f"model.weights=disk: {folder} has no safetensors files; model.weights=memory "
                "reads others too"
            )
        self.prefix = ""
        self.renamed: dict[str, str] = {}
        self.model: nn.Module | None = None
        self.finished: dict[str, Callable[[], None]] = {}

    def first_dtype(self) -> torch.dtype | None:
        """The type of the first weights in the files."""
        name, path = next(iter(self.files.items()))
        with _opened(path) as file:
            found: torch.dtype = file.get_tensor(name).dtype
        return found if found.is_floating_point else None

    def fill(self, model: nn.Module) -> None:
        """Read all that is in no block.

        Args:
            model: built on the device ``meta``, but for its buffers.

        Raises:
            UserError: the files have other names than the model, or a tensor of another shape.
        """
        self.prefix = str(getattr(model, "base_model_prefix", ""))
        self.model = model
        inside = tuple(f"{block.name}." for block in find_blocks(model))
        outside = {k: v for k, v in model.named_parameters() if not k.startswith(inside)}
        there = {name: like for name, like in outside.items() if self.stored(name)}
        for name, tensor in self.read(there).items():
            _place(model, name, nn.Parameter(tensor, requires_grad=False))
        model.tie_weights()  # type: ignore[operator]  # a method, whatever nn.Module says
        outside = {k: v for k, v in model.named_parameters() if not k.startswith(inside)}
        left = {name: like for name, like in outside.items() if like.is_meta}
        self._find_renamed(model, left)
        for name, tensor in self.read(left).items():
            _place(model, name, nn.Parameter(tensor, requires_grad=False))
        buffers = {k: v for k, v in model.named_buffers() if self.stored(k)}
        for name, tensor in self.read(buffers, keep=True).items():
            buffers[name].copy_(tensor)

    def _find_renamed(self, model: nn.Module, left: Mapping[str, Tensor]) -> None:
        """Of GPT-NeoX's head the files have another name: one tensor is left for one parameter."""
        claimed = {self.stored(name) for name in model.state_dict()}
        spare = [name for name in self.files if name not in claimed]
        if len(left) == len(spare) == 1:
            self.renamed = {next(iter(left)): spare[0]}

    def move(self, device: torch.device) -> None:
        """Bring all that is in memory to a device, where blocks will be loaded from now on."""
        assert self.model is not None
        for module in self.model.modules():
            for held in (module._parameters, module._buffers):
                for tensor in held.values():
                    if tensor is not None and not tensor.is_meta:
                        tensor.data = tensor.data.to(device)

    def stored(self, name: str) -> str | None:
        """The name a tensor has in the files: with or without that of the inner model."""
        inner = name.removeprefix(f"{self.prefix}.")
        known = (self.renamed.get(name, name), inner)
        return next((one for one in known if one in self.files), None)

    def read(self, wanted: Mapping[str, Tensor], keep: bool = False) -> dict[str, Tensor]:
        """Tensors of the files by their names in the model.

        Args:
            wanted: by name, something of the same shape.
            keep: the files' types.

        Raises:
            UserError: one is missing or of another shape.
        """
        found = {}
        with ExitStack() as stack:
            opened: dict[Path, Any] = {}
            for name, like in wanted.items():
                stored = self.stored(name)
                if stored is None:
                    raise UserError(
                        f"model.weights=disk: {self.folder} has no tensor '{name}'; a folder "
                        "that names its tensors as the model does is needed, such as one that "
                        "save_pretrained has written"
                    )
                path = self.files[stored]
                if path not in opened:
                    opened[path] = stack.enter_context(_opened(path))
                tensor = opened[path].get_tensor(stored)
                if tensor.shape != like.shape:
                    shapes = f"{tuple(tensor.shape)}, and the model needs {tuple(like.shape)}"
                    raise UserError(f"model.weights=disk: '{stored}' is {shapes}")
                dtype = tensor.dtype if keep else like.dtype
                found[name] = tensor.to(self._device(), dtype, copy=True)  # not a mapped file
        return found

    def load(self, block: Block) -> None:
        """Bring a block into memory, as it is by now."""
        wanted = {f"{block.name}.{k}": p for k, p in block.module.named_parameters()}
        for name, tensor in self.read(wanted).items():
            inner = name.removeprefix(f"{block.name}.")
            _place(block.module, inner, nn.Parameter(tensor, requires_grad=False))
        if block.name in self.finished:
            self.finished[block.name]()

    def drop(self, block: Block) -> None:
        """Free the memory of a block."""
        for name, parameter in list(block.module.named_parameters()):
            empty = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
            _place(block.module, name, empty)

    def _device(self) -> torch.device:
        try:
            return device_of(self.model) if self.model else torch.device("cpu")
        except StopIteration:  # nothing is there yet
            return torch.device("cpu")

    def write(self, folder: Path, blocks: Sequence[Block]) -> None:
        """Write the model as it is by now, each block into a file of its own.

        Args:
            folder: gets safetensors files with the names of the tensors that were read, their
                index, and the model's config.
            blocks: of the model.
        """
        from safetensors.torch import save_file

        assert self.model is not None
        model: Any = self.model
        model.config.save_pretrained(folder)
        if getattr(model, "generation_config", None):
            model.generation_config.save_pretrained(folder)
        where: dict[str, str] = {}
        total = 0
        for number, tensors in enumerate(self._shards(blocks), 1):
            name = f"model-{number:05d}-of-{len(blocks) + 1:05d}.safetensors"
            save_file(
                {k: v.contiguous() for k, v in tensors.items()}, folder / name, {"format": "pt"}
            )
            where |= dict.fromkeys(tensors, name)
            total += sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))

    def _shards(self, blocks: Sequence[Block]) -> Iterator[dict[str, Tensor]]:
        """All tensors by their names in the files: what is in no block, then block by block."""
        assert self.model is not None
        inside = tuple(f"{block.name}." for block in blocks)
        outside = {k: v for k, v in self.model.state_dict().items() if not k.startswith(inside)}
        yield {stored: v for k, v in outside.items() if (stored := self.stored(k))}
        for block in blocks:
            with block.loaded():
                state = {f"{block.name}.{k}": v for k, v in block.module.state_dict().items()}
                yield {stored: v for k, v in state.items() if (stored := self.stored(k))}


def skeleton(where: str, dtype: torch.dtype | None, **options: Any) -> tuple[nn.Module, Disk]:
    """A model without its blocks' weights, and where these are.

    Args:
        where: a folder, or a name on the hub, whose files are brought into its cache.
        dtype: of the weights; None: as the folder's config or its files say.
        **options: of ``from_config``.

    Raises:
        UserError: no safetensors files, or not this model's.
    """
    import transformers
    from accelerate import init_empty_weights

    auto: Any = transformers
    folder = Path(where)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(where, allow_patterns=["*.json", "*.safetensors"]))
    disk = Disk(folder)
    config = auto.AutoConfig.from_pretrained(folder)
    wanted = dtype or getattr(config, "dtype", None) or disk.first_dtype()
    with init_empty_weights(include_buffers=False):
        model = auto.AutoModelForCausalLM.from_config(config, dtype=wanted, **options)
    disk.fill(model.eval())
    return model, disk


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"model.weights=disk: {path} can't be read: {error}") from error


def _place(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Put a parameter where its dotted name says."""
    path, _, last = name.rpartition(".")
    module.get_submodule(path)._parameters[last] = parameter
