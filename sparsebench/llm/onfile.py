"""Tensors of one shape in a file of no name, so that only one of them is in memory at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from sparsebench.errors import UserError


class OnFile:
    """A list of tensors that reads and writes them as it is asked for them.

    Plain reads and writes, and not a memory-mapped file: a disk that is full is an error then,
    and not the end of the process. The file vanishes with the process.
    """

    def __init__(self, folder: Path) -> None:
        """Open the file.

        Args:
            folder: where there is room.

        Raises:
            UserError: it can't be written to.
        """
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - lives on
        except OSError as error:
            raise self._refused(error) from error
        self.like: Tensor | None = None
        self.count = 0

    def __len__(self) -> int:
        """Number of tensors."""
        return self.count

    def __iter__(self) -> Iterator[Tensor]:
        """One after the other."""
        return (self[number] for number in range(self.count))

    def append(self, tensor: Tensor) -> None:
        """Write one more, of the shape, type and device of the first."""
        if self.like is None:
            self.like = torch.empty_like(tensor, device="meta")
            self.device = tensor.device
        self.count += 1
        self[self.count - 1] = tensor

    def copy(self) -> OnFile:
        """A list of the same tensors in a file of its own."""
        other = OnFile(self.folder)
        for tensor in self:
            other.append(tensor)
        return other

    def __setitem__(self, number: int, tensor: Tensor) -> None:
        """Write one."""
        data = _bytes(tensor.detach().cpu().contiguous())
        self.file.seek(number * data.nbytes)
        try:
            while data.nbytes:  # a write may stop half-way, and says so
                data = data[self.file.write(data) :]
        except OSError as error:
            raise self._refused(error) from error

    def __getitem__(self, number: int) -> Tensor:
        """Read one."""
        if self.like is None or number >= self.count:
            raise IndexError(number)
        found = torch.empty(self.like.shape, dtype=self.like.dtype)
        data = _bytes(found)
        self.file.seek(number * data.nbytes)
        while data.nbytes:
            data = data[self.file.readinto(data) :]
        return found.to(self.device)

    def _refused(self, error: OSError) -> UserError:
        return UserError(
            f"calibration.activations=disk: {self.folder} can't be written to ({error.strerror})"
        )


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a tensor, of any type."""
    return memoryview(tensor.view(-1).view(torch.uint8).numpy().data)
