"""Loaders whose order depends on (seed, epoch) alone and that resume at any batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sparsebench.data.images import Batched
from sparsebench.data.seeding import generator
from sparsebench.errors import UserError


class TrainLoader:
    """Shuffled, augmented batches of the training set, for one rank.

    The order of an epoch is a function of (seed, epoch), the augmentation of (seed, epoch,
    sample). Neither touches the global generators nor depends on workers, ranks or on
    where a run was interrupted. Under Lightning a checkpoint written after any batch holds
    the place (``state_dict``), and ``Trainer(use_distributed_sampler=False)`` goes on from
    it bitwise. In a bare loop every pass moves on to the next epoch.

    Args:
        images: the training set; where epochs differ in length, with a ``size_at(epoch)``.
        batch_size: samples in a batch over all ranks.
        seed: seed of the run.
        rank: takes positions ``rank::world_size`` of each batch.
        world_size: number of ranks; must divide the batch size.
        drop_last: leave out the last, smaller batch. If it is kept and smaller than the
            number of ranks, it is left out all the same.
        multiple: an epoch has a multiple of so many batches, as gradient accumulation needs.

    Raises:
        UserError: no batch would be left, or the ranks would get unequal shares.
    """

    batch_sampler = None  # Lightning asks any loader that has a sampler for this too

    def __init__(
        self,
        images: Batched,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = True,
        multiple: int = 1,
    ) -> None:
        check_batch_size(batch_size)
        if batch_size % world_size:
            raise UserError(f"batch_size={batch_size}: cannot be shared by {world_size} devices")
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.drop_last, self.multiple = drop_last, multiple
        if self.length(0) == 0:
            raise UserError(
                f"batch_size={batch_size}: the training set has only {len(images)} images"
            )
        self._epoch = 0  # epoch the next pass visits
        self._start = 0  # its first batch; only a loaded state makes it more than 0
        self._place = (0, 0)  # epoch and batch to go on from after what was handed out

    def __len__(self) -> int:
        return self.length(self._epoch)

    def length(self, epoch: int) -> int:
        """Batches of an epoch."""
        full, rest = divmod(self._samples(epoch), self.batch_size)
        batches = full + (not self.drop_last and rest >= self.world_size)
        return batches - batches % self.multiple

    def _samples(self, epoch: int) -> int:
        size_at = getattr(self.images, "size_at", None)
        return size_at(epoch) if size_at else len(self.images)

    @property
    def sampler(self) -> TrainLoader:
        """The object Lightning tells the epoch to: the loader itself."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the one that the next pass visits."""
        if epoch != self._epoch:
            self._epoch, self._start, self._place = epoch, 0, (epoch, 0)

    def order(self, epoch: int) -> Tensor:
        """The permutation of the samples (int64 [N]) in ``epoch``, equal on all ranks."""
        chance = generator("order", self.seed, epoch)
        return torch.randperm(self._samples(epoch), generator=chance)

    def positions(self, epoch: int, start: int = 0) -> list[Tensor]:
        """This rank's sample positions in each batch of ``epoch`` from ``start`` on."""
        cuts = torch.split(self.order(epoch), self.batch_size)[start : self.length(epoch)]
        return [cut[self.rank :: self.world_size].contiguous() for cut in cuts]

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of ``epoch`` from ``start`` on; moves nothing, so anybody may look."""
        draw = self.images.draw(self.seed, epoch)
        return self.images.batches(self.positions(epoch, start), draw)

    def __iter__(self) -> Iterator[Any]:
        # A generator starts at its first batch: Lightning makes the iterator of a resumed
        # run before it tells the epoch.
        epoch, start, self._start = self._epoch, self._start, 0
        length = self.length(epoch)
        for number, batch in enumerate(self.batches(epoch, start), start=start + 1):
            self._place = (epoch, number) if number < length else (epoch + 1, 0)
            yield batch
        if self._epoch == epoch:
            self._epoch = epoch + 1

    def state_dict(self) -> dict[str, int]:
        """The place after the last batch handed out, and what gives it its meaning."""
        epoch, batch = self._place
        return {"epoch": epoch, "batch": batch, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the place that ``state_dict`` gave.

        Raises:
            UserError: the place was one in another order of samples.
        """
        for key, now in self._identity().items():
            if state[key] != now:
                raise UserError(f"{key}={now}: the checkpoint was written with {state[key]}")
        self._epoch, self._start = state["epoch"], state["batch"]
        self._place = (self._epoch, self._start)

    def _identity(self) -> dict[str, int]:
        return {"seed": self.seed, "batch_size": self.batch_size, "samples": len(self.images)}


class EvalLoader:
    """All samples in order, once, without randomness; a rank's share has no duplicates.

    Args:
        images: the validation or test set.
        batch_size: samples in a batch over all ranks.
        rank: takes positions ``rank::world_size`` of each batch.
        world_size: number of ranks; their numbers of batches may differ by one.
    """

    def __init__(
        self, images: Batched, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        check_batch_size(batch_size)
        self.images = images
        cuts = torch.split(torch.arange(len(images)), batch_size)
        shares = (cut[rank::world_size].contiguous() for cut in cuts)
        self._positions = [share for share in shares if len(share)]

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[Any]:
        return self.images.batches(self._positions)


def check_batch_size(batch_size: int) -> None:
    """Refuse a batch size below 1."""
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: must be at least 1")
