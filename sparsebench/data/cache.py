"""Decoded sets on disk: one memory-mapped file each, checked before it is used."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from torch import Tensor

ABANDONED = 3600.0  # seconds without a write after which a temporary file is nobody's
VERSION = 1  # raise it when the content of a cache file changes its meaning

log = logging.getLogger(__name__)

Tensors = dict[str, Tensor]
Decoded = tuple[Tensors, dict[str, str]]  # tensors by name, and text kept beside them


def folder() -> Path:
    """SPARSEBENCH_CACHE, or ``~/.cache/sparsebench``."""
    return Path(os.environ.get("SPARSEBENCH_CACHE") or "~/.cache/sparsebench").expanduser()


def key_of(sources: Iterable[Path], *settings: object) -> str:
    """A short hash of where, how large and how old the source files are, and of settings."""
    parts = [repr(setting) for setting in (VERSION, *settings)]
    for source in sources:
        stat = source.stat()
        parts.append(f"{source.absolute()} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def digest(tensors: Tensors) -> str:
    """The sha256 of names, types, shapes and bytes."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.numpy().reshape(-1).view("uint8").data)
    return total.hexdigest()


def cached(name: str, key: str, build: Callable[[], Decoded], use: bool = True) -> Decoded:
    """What ``build`` returns, from disk if it is there.

    Args:
        name: name of the set, for the file and for messages.
        key: hash of all that decides the content.
        build: decodes the set.
        use: False: neither read nor write.

    Returns:
        The tensors, memory-mapped if they come from disk, and their text, which has the
        content's digest under ``sha256``.
    """
    path = _file(name, key) if use else None
    if path is not None and path.exists():
        try:
            return _read(path)
        except Exception as error:  # whatever a damaged file does to its reader
            log.warning("%s is damaged (%s); decoding %s again", path, _line(error), name)
    tensors, text = build()
    text = {**text, "sha256": digest(tensors)}
    if path is not None:
        _write(path, tensors, text)
    return tensors, text


def _file(name: str, key: str) -> Path | None:
    try:
        return folder() / "data" / f"{name.replace('/', '--')}-{key}.safetensors"
    except RuntimeError:  # no home folder
        return None


def _read(path: Path) -> Decoded:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
        text = json.loads(file.metadata()["text"])
    if digest(tensors) != text["sha256"]:
        raise ValueError("its checksum does not fit")
    return tensors, text


def _write(path: Path, tensors: Tensors, text: dict[str, str]) -> None:
    """Write beside ``path`` and rename, so that a reader sees a whole file or none."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.stem}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        save_file(tensors, temporary, metadata={"text": json.dumps(text)})
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        log.info("decoded data is not kept at %s (%s)", path, _line(error))
        with contextlib.suppress(OSError):
            temporary.unlink()


def _sweep(path: Path) -> None:
    """Remove what a killed process left half written, once nobody can be writing it."""
    for left in path.parent.glob(f".{path.stem}-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
