"""What a run keeps of its stream: accuracies after each task, and which weights tasks use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsebench.sparsity.masks import Masks, pack, unpack

SCENARIOS = ("task_il", "class_il", "domain_il")
#: For each scenario the accuracy on each task, in percent; None where there is none.
Accuracies = dict[str, list[float | None]]


class Record:
    """Grows by one row a task; of masks only their union is kept.

    Attributes:
        before: accuracies of the network before training.
        matrices: for each scenario R, of which the rows so far.
        shares: for each task so far the shares of the weights: ``used``, of them ``new`` and
            ``reused``, and ``free``, which no task has used.
    """

    def __init__(self, tasks: int) -> None:
        """Start with nothing."""
        self.tasks = tasks
        self.before: Accuracies = {}
        self.matrices: dict[str, list[list[float | None]]] = {name: [] for name in SCENARIOS}
        self.shares: list[dict[str, float]] = []
        self._union: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.shares)

    def add(self, accuracies: Accuracies, masks: Masks, *, isolated: Sequence[str] = ()) -> None:
        """Take what was measured after a task.

        Args:
            accuracies: on each task.
            masks: of the network as the task left it.
            isolated: scenarios in which the accuracy on an earlier task may not have changed.

        Raises:
            RuntimeError: knowing the task made a prediction worse, or the accuracy on an isolated
                task has changed, so something is wrong.
        """
        for name in isolated:
            for other, row in enumerate(self.matrices[name]):
                if accuracies[name][other] != row[other]:
                    raise RuntimeError(
                        f"task {other} is isolated, but its accuracy went from {row[other]} to "
                        f"{accuracies[name][other]}"
                    )
        for narrow, wide in zip(accuracies["task_il"], accuracies["class_il"], strict=True):
            if narrow is not None and wide is not None and narrow < wide:
                raise RuntimeError(f"task-incremental accuracy {narrow} is below {wide}")
        for name in SCENARIOS:
            self.matrices[name].append(accuracies[name])
        self.shares.append(self._share(masks))

    def _share(self, masks: Masks) -> dict[str, float]:
        total = sum(masks.sizes.values())
        used = reused = union = 0
        for name, mask in masks.items():
            if name not in self._union:
                self._union[name] = pack(torch.zeros_like(mask))
            before = unpack(self._union[name].to(mask.device), mask.shape)
            used += int(mask.sum())
            reused += int((mask & before).sum())
            union += int((mask | before).sum())
            self._union[name] = pack(mask | before)
        return {
            "used": used / total,
            "new": (used - reused) / total,
            "reused": reused / total,
            "free": 1.0 - union / total,
        }

    def full(self, scenario: str) -> list[list[float | None]]:
        """R, T rows of T; what was not measured is None."""
        none: list[float | None] = [None] * self.tasks
        rows = self.matrices[scenario]
        missing = [list(none) for _ in range(self.tasks - len(rows))]
        return [*missing, *rows]  # of joint training only the last row exists

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        return {
            "before": self.before,
            "matrices": self.matrices,
            "shares": self.shares,
            "union": self._union,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        self.before = dict(state["before"])
        self.matrices = {name: list(rows) for name, rows in state["matrices"].items()}
        self.shares = list(state["shares"])
        self._union = dict(state["union"])
