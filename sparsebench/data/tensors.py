"""Data of any kind that a loader can cut batches from: rows of a few tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class TensorRows:
    """Samples in memory; a batch is the same rows of each tensor.

    Nothing is random here: what a task corrupts or draws, it draws in its loss, from torch's
    global generator.
    """

    tensors: tuple[Tensor, ...]  # each [N, ...]

    def __len__(self) -> int:
        return len(self.tensors[0])

    def select(self, positions: Tensor) -> TensorRows:
        """The samples at ``positions`` (int64 [n]), in that order (a copy)."""
        return TensorRows(tuple(tensor[positions] for tensor in self.tensors))

    def draw(self, seed: int, epoch: int) -> Any:
        """Nothing."""
        return None

    def batches(
        self, positions: Iterable[Tensor], draw: Any = None
    ) -> Iterator[tuple[Tensor, ...]]:
        """One batch for each tensor of positions."""
        for each in positions:
            yield tuple(tensor.index_select(0, each) for tensor in self.tensors)


def fingerprint(*rows: TensorRows | None) -> str:
    """Short sha256 of the content, as ``DataSets`` has it."""
    total = hashlib.sha256()
    for each in rows:
        for tensor in each.tensors if each is not None else ():
            total.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
            total.update(tensor.contiguous().numpy().tobytes())
        total.update(b"|")
    return total.hexdigest()[:16]
