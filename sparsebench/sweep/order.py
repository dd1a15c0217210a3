"""What runs cost, and which of them come first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from sparsebench.errors import bad_value
from sparsebench.result import read_result
from sparsebench.sweep.cells import Cells, Run
from sparsebench.sweep.spec import ORDERS

#: Finished seeds of a cell that are looked at.
ENOUGH = 3
#: What a run may spend its time on, none of it part of another.
_SECONDS = tuple(f"seconds/{what}" for what in ("setup", "fit", "pruning", "recovery", "testing"))


@dataclass(frozen=True)
class Costs:
    """What runs cost, by identity.

    Attributes:
        of: seconds, or if none is known so far, samples times epochs.
        measured: whether these are seconds.
    """

    of: Mapping[str, float]
    measured: bool

    def total(self, runs: Iterable[Run]) -> float:
        """Of some runs."""
        return sum(self.of.get(run.identity, 0.0) for run in runs)


def ordered(runs: Iterable[Run], order: str, costs: Mapping[str, float]) -> list[Run]:
    """The runs in the order they shall start; equally dear ones stay in the table's.

    Args:
        runs: in the order of the table.
        order: ``table``, ``shortest`` or ``longest`` first.
        costs: by identity.

    Raises:
        UserError: there is no such order.
    """
    if order not in ORDERS:
        raise bad_value("hydra.sweeper.order", order, f"one of {', '.join(ORDERS)}", ORDERS)
    if order == "table":
        return list(runs)
    sign = 1 if order == "shortest" else -1
    return sorted(runs, key=lambda run: sign * costs[run.identity])


def measured(cells: Cells) -> dict[str, float]:
    """Seconds of finished runs, of a few seeds of each cell."""
    looked: dict[tuple[int, int], int] = defaultdict(int)
    found: dict[str, float] = {}
    for (i, j, _), name in cells.of.items():
        if name in cells.done and looked[i, j] < ENOUGH:
            looked[i, j] += 1
            if name not in found and (seconds := seconds_of(read_result(cells.runs[name].folder))):
                found[name] = seconds
    return found


def seconds_of(result: Mapping[str, Any] | None) -> float:
    """What a run took; 0 if it did not finish."""
    if result is None or result["status"] != "finished":
        return 0.0
    return spent(result["metrics"])


def spent(metrics: Mapping[str, Any]) -> float:
    """Seconds of all parts of a run."""
    return sum(float(metrics.get(key) or 0.0) for key in _SECONDS)


def estimate(cells: Cells, seconds: Mapping[str, float]) -> Costs:
    """What each run costs: as its cell's finished seeds, else by its samples and epochs.

    The network's own cost is not known before it is built, and counts as the same for all.

    Args:
        cells: all runs.
        seconds: of those that have finished.
    """
    places: dict[tuple[int, int], set[str]] = defaultdict(set)
    for (i, j, _), name in cells.of.items():
        places[i, j].add(name)
    work = {name: _work(run) for name, run in cells.runs.items()}
    rate = sum(seconds.values()) / sum(work[name] for name in seconds) if seconds else 1.0
    costs = {name: rate * amount for name, amount in work.items()}
    for names in places.values():
        if known := [seconds[name] for name in names if name in seconds]:
            costs |= dict.fromkeys(names, fmean(known))
    return Costs({**costs, **seconds}, measured=bool(seconds))


def _work(run: Run) -> float:
    return float(max(run.epochs, 1) * (run.samples or 1))


def costs_of(cells: Cells, todo: Sequence[Run]) -> Costs:
    """What the runs of a grid cost; nothing is read if none is to be done."""
    return estimate(cells, measured(cells) if todo else {})
