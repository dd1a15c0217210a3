"""Finished blocks of a run in its folder: a killed run goes on at the block where it was."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from operator import methodcaller
from pathlib import Path

from torch import Tensor

from sparsebench.files import read_json, write_atomically, write_json


@dataclass(frozen=True)
class Done:
    """What became of a block.

    Attributes:
        tensors: what restores each layer, by name of its weight.
        spent: seconds of the run up to here.
        errors: of the layers' outputs, where they were measured.
    """

    tensors: dict[str, dict[str, Tensor]]
    spent: float
    errors: dict[str, float] = field(default_factory=dict)


class Kept:
    """Finished blocks of a run in its folder."""

    def __init__(self, folder: Path, key: str) -> None:
        """Keep what is there if it is of the same key, else begin anew."""
        self.folder, self.key = folder, key
        if read_json(folder / "key.json") != key:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_json(folder / "key.json", key)

    def sparsities(self) -> dict[str, float] | None:
        """Of each layer, if they were found."""
        return read_json(self.folder / "sparsities.json")

    def write_sparsities(self, sparsities: dict[str, float]) -> None:
        """Keep them."""
        write_json(self.folder / "sparsities.json", sparsities)

    def read(self, number: int) -> Done | None:
        """What became of a block, if it is finished; masks and the rest stay mapped from files."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        said = read_json(self._path(number, "json"))
        if said is None:
            return None
        tensors: dict[str, dict[str, Tensor]] = {}
        for part in said["parts"]:
            try:
                flat = load_file(self._path(number, part))
            except (OSError, SafetensorError):  # lost or damaged: done again
                return None
            for key, tensor in flat.items():
                kind, _, name = key.partition("/")
                tensors.setdefault(name, {})[kind] = tensor
        return Done(tensors, said["spent"], said["errors"])

    def write(self, number: int, done: Done) -> None:
        """Keep what restores the layers settled with a block.

        Masks have a file of their own: who holds them until the end must not have the weights
        beside them mapped too.

        Raises:
            UserError: the disk is full.
        """
        from safetensors.torch import save

        parts: dict[str, dict[str, Tensor]] = {}
        for name, kept in done.tensors.items():
            for kind, tensor in kept.items():
                part = f"{'masks.' if kind == 'mask' else ''}safetensors"
                parts.setdefault(part, {})[f"{kind}/{name}"] = tensor.cpu().contiguous()
        for part, flat in parts.items():
            write_atomically(self._path(number, part), methodcaller("write", save(flat)))
        said = {"spent": done.spent, "errors": done.errors, "parts": list(parts)}
        write_json(self._path(number, "json"), said)

    def _path(self, number: int, part: str) -> Path:
        return self.folder / f"{number:04d}.{part}"
