"""Removal of data while a task is learned: what the network knows already is not shown again.

DDR of SparCL (Wang et al., arXiv 2209.09476): in stages, early in a task, the easiest samples of
the task are left out of all epochs that follow, so that these are shorter. How hard a sample is, is
counted since the last stage: how often it was ``misclassified`` (paper), or how often it was
forgotten, that is wrong after it had been right (``forgetting``, code: neu-spiral/SparCL). One that
was never right counts as often again as there were epochs, as in the code. Each stage removes as
many, ``int(removed / stages)``; the code removes 3,000 of 10,000 samples in 4 stages. An answer is
right among the outputs that the sample competes with in training (the code: among all). Of equal
samples the seed chooses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsebench.data.seeding import generator
from sparsebench.errors import UserError, bad_value
from sparsebench.sparsity.time import Duration


@dataclass(frozen=True)
class Stages:
    """When samples are removed, in epochs of a task.

    Attributes:
        share: of the samples, removed in all.
        every: epochs between two stages.
        until: last epoch that may begin with one.
    """

    share: float
    every: int
    until: int

    def comes(self, epoch: int) -> bool:
        """Whether an epoch of a task begins with a stage."""
        return 0 < epoch <= self.until and epoch % self.every == 0

    def left(self, samples: int, epoch: int) -> int:
        """How many of the samples of a task are shown in one of its epochs."""
        stages, past = self.until // self.every, min(epoch, self.until) // self.every
        return samples - round(self.share * samples) // stages * past


def stages_of(options: Any, epochs: int) -> Stages:
    """The stages that ``task.options`` ask for.

    Args:
        options: with ``remove``, ``remove_every`` and ``remove_until``.
        epochs: of a task.

    Raises:
        UserError: no stage would come, or one that nothing comes after.
    """
    said = {}
    for name in ("remove_every", "remove_until"):
        key, given = f"task.options.{name}", getattr(options, name)
        length = Duration.parse(given, key)
        if length.unit == "it":
            raise bad_value(key, given, "samples are removed between epochs; say 5ep or 10%")
        said[name] = length.steps(epochs, 1)
    every, until = said["remove_every"], said["remove_until"]
    if not 1 <= every <= until < epochs:
        raise UserError(
            f"task.options.remove_every={options.remove_every} task.options.remove_until="
            f"{options.remove_until}: with epochs={epochs} these are {every} and {until} epochs of "
            f"a task; 1 <= remove_every <= remove_until < {epochs} is needed"
        )
    return Stages(options.remove, every, until)


class Removal:
    """Which samples of the present task are left.

    Attributes:
        kept: int64, positions of these among all of the task, ascending; None: all.
    """

    def __init__(self, stages: Stages, by: str, seed: int) -> None:
        """Start with nothing removed.

        Args:
            stages: how many are removed, and when.
            by: ``misclassified`` or ``forgetting``.
            seed: of the choice among equals.
        """
        self.stages, self.by, self.seed = stages, by, seed
        self.kept: Tensor | None = None
        self._forget(0)

    def _forget(self, samples: int) -> None:
        self._count = torch.zeros(samples, dtype=torch.int64)
        self._right = torch.zeros(samples, dtype=torch.bool)  # at its last presentation
        self._ever = torch.zeros(samples, dtype=torch.bool)

    def begin_epoch(self, samples: int, task: int, epoch: int) -> None:
        """Take the task's first epoch as a new beginning, and remove if it is time.

        Args:
            samples: of the task.
            task: its number.
            epoch: of the task, from 0.
        """
        if epoch == 0:
            self.kept = None
            self._forget(samples)
        elif self.stages.comes(epoch):
            kept = torch.arange(samples) if self.kept is None else self.kept
            hardness = self._count + self.stages.every * ~self._ever
            mixed = torch.randperm(
                len(kept), generator=generator("removal", self.seed, task, epoch)
            )
            order = kept[mixed][hardness[kept[mixed]].argsort(descending=True, stable=True)]
            self.kept = order[: self.stages.left(samples, epoch)].sort().values
            self._forget(samples)

    def observe(self, places: Tensor, right: Tensor) -> None:
        """Count the answers to a batch.

        Args:
            places: int64 [B], positions among the task's samples.
            right: bool [B].
        """
        places, right = places.cpu(), right.cpu()
        event = ~right if self.by == "misclassified" else self._right[places] & ~right
        self._count[places] += event
        self._right[places] = right
        self._ever[places] |= right

    def state_dict(self) -> dict[str, Any]:
        """All that resuming needs."""
        return {
            "kept": self.kept,
            "count": self._count,
            "right": self._right,
            "ever": self._ever,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        self.kept, self._count = state["kept"], state["count"].clone()
        self._right, self._ever = state["right"].clone(), state["ever"].clone()
