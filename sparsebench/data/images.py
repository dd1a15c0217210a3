"""Labelled images that a loader can cut batches from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from sparsebench.data.augment import Draw, Recipe, augment, draw_epoch, normalise

Batch = tuple[Tensor, Tensor]  # float32 [B, ...], int64 [B]


class Batched(Protocol):
    """What the loaders ask of data of any kind."""

    def __len__(self) -> int: ...
    def draw(self, seed: int, epoch: int) -> Any:
        """The random choices of a training epoch, to be handed to ``batches``."""
        ...

    def batches(self, positions: Iterable[Tensor], draw: Any = None) -> Iterator[Any]:
        """One batch for each tensor of positions; without ``draw`` nothing is random."""
        ...


class Images(Batched, Protocol):
    """Labelled images, be they in memory or on disk."""

    @property
    def labels(self) -> Tensor:
        """Class of each sample, int64 [N]."""
        ...

    @property
    def rows(self) -> Tensor:
        """Which samples of the whole set these are, int64 [N]."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample in a batch."""
        ...

    def select(self, positions: Tensor) -> Images:
        """The samples at ``positions`` (int64), in that order."""
        ...

    def batches(self, positions: Iterable[Tensor], draw: Any = None) -> Iterator[Batch]:
        """One batch for each tensor of positions; without ``draw`` nothing is random."""
        ...


@dataclass(frozen=True, eq=False)
class TensorImages:
    """Samples in memory (or memory-mapped): a view on rows of one stored tensor.

    Subsets share the storage, so that splitting copies nothing.
    """

    storage: Tensor  # uint8 [M, C, H, W], or float32 [M, ...] used as it is
    labels: Tensor  # int64 [N], of the rows below
    rows: Tensor  # int64 [N], which of the M stored samples belong to this set
    recipe: Recipe = Recipe()

    @classmethod
    def of(cls, images: Tensor, labels: Tensor, recipe: Recipe | None = None) -> TensorImages:
        """All of ``images`` [N, ...] with their ``labels`` [N]."""
        rows = torch.arange(len(images))
        return cls(images, labels.to(torch.int64), rows, recipe or Recipe())

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.storage.shape[1:])

    @property
    def images(self) -> Tensor:
        """The stored samples of this set [N, ...], not augmented and not normalised (a copy)."""
        return self.storage.index_select(0, self.rows)

    def select(self, positions: Tensor) -> TensorImages:
        """The samples at ``positions`` (int64), in that order."""
        return replace(self, labels=self.labels[positions], rows=self.rows[positions])

    def draw(self, seed: int, epoch: int) -> Draw | None:
        """The crop offsets and flips of every sample in a training epoch."""
        return draw_epoch(self.recipe, len(self), seed, epoch)

    def batch(self, positions: Tensor, draw: Draw | None = None) -> Batch:
        """Cut one batch.

        Args:
            positions: int64 [B], which samples of this set.
            draw: the epoch's random choices; None for no augmentation.

        Returns:
            Contiguous float32 [B, ...] and int64 [B].
        """
        images = self.storage.index_select(0, self.rows[positions])
        if draw is not None:
            images = augment(images, self.recipe, draw, positions)
        return normalise(images, self.recipe), self.labels[positions]

    def batches(self, positions: Iterable[Tensor], draw: Draw | None = None) -> Iterator[Batch]:
        """One batch for each tensor of positions."""
        for each in positions:
            yield self.batch(each, draw)


@dataclass(frozen=True)
class DataSets:
    """Everything a task needs to know about its data: images, or what the task itself makes."""

    name: str
    num_classes: int
    input_shape: tuple[int, ...]  # of one sample: (C, H, W), or (F,) for signals
    train: Batched
    validation: Batched | None  # held out of the training images; None if nothing is
    test: Batched
    class_names: tuple[str, ...]
    fingerprint: str  # short sha256 of the images and labels used
    notes: tuple[str, ...] = ()  # such as "cifar10 (JPEG)": said beside every figure
    #: what is known beside the samples, such as which features of synthetic data are ``relevant``
    facts: Mapping[str, Tensor] = field(default_factory=dict)
