"""PackNet: tasks packed into one network by pruning (Mallya and Lazebnik 2018, arXiv 1711.05769).

Each task trains all weights that nobody owns; at ``begin`` (of the task) its least magnitudes are
freed for the tasks to come, and the rest of the task's steps retrain what it keeps. It uses all
that earlier tasks own as it is, so its mask is everything that is owned.

How much a task keeps (``options.share``):

* ``all``: 1 - ``sparsity`` of all weights of each layer, by the distribution; with T tasks and
  ``sparsity`` = 1 - 1/T the network is full at the end. So WSN (Kang et al., ICML 2022) compares.
* ``free``: 1 - ``sparsity`` of the weights it trained, and the last task of a stream keeps all
  (the paper and its code, with 0.5 and 0.75).

Official code: arunmallya/packnet. As there, freed weights start from zero (``options.fresh``) and
biases and norms stay as the first task left them (``options.rest``), and the last layer is a dense
head of each task (``selector=not_last``): else a task would take weights of classes to come. On
purpose we differ: counts are exact, where the code's threshold takes all ties with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from sparsebench.errors import UserError
from sparsebench.sparsity import updates
from sparsebench.sparsity.forecast import counts
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.methods import isolated
from sparsebench.sparsity.topk import count, positions


@dataclass(frozen=True)
class Options(isolated.Options):
    """What a task keeps, and what it begins with."""

    share: str = field(default="all", metadata={"choices": ("all", "free")})


class PackNet(isolated.Isolated):
    """Trains what is free, then gives most of it back."""

    Options = Options
    _tasks: int | None = None

    def update(self, state: TrainState) -> None:
        """Free what the task keeps least of."""
        if self.options.share == "free" and len(self.vault) + 1 == self._tasks:
            return
        free = {name: ~owned.reshape(-1) for name, owned in self.vault.owned.items()}
        kept = updates.best(
            self._layers(state), free, self._prune, self._kept(state, free), self.structure
        )
        for name, units in kept.items():
            gone = free[name].index_fill(0, units, False)
            self._move(state, name, positions(gone), units[:0], None)

    def _kept(self, state: TrainState, free: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """Of each layer, how many of the free weights the task keeps."""
        room = {name: count(units) for name, units in free.items()}
        if self.options.share == "free":
            return {name: k - round(self.sparsity * k) for name, k in room.items()}
        wanted = self._counts(state, self.sparsity)
        return {name: min(wanted[name], k) for name, k in room.items()}

    def check_tasks(self, sizes: Mapping[str, torch.Size], tasks: int) -> None:
        """Refuse a stream of which a task would find no free weight.

        Args:
            sizes: shapes of the sparse weights by name.
            tasks: how many there are.

        Raises:
            UserError: naming the first task that does not fit.
        """
        self._tasks = tasks
        share = counts(self, sizes, self.sparsity)
        for name, size in sizes.items():
            used = 0
            for task in range(tasks):
                free = size.numel() - used
                if not free:
                    raise UserError(
                        f"sparsity={self.sparsity}: task {task} of {tasks} (counted from 0) finds "
                        f"no free weight in '{name}'; the tasks before it have used all "
                        f"{size.numel()}"
                    )
                of_free = free - round(self.sparsity * free)
                used += of_free if self.options.share == "free" else min(share[name], free)
