"""Ratios measured side by side: absolute times on a shared machine are noise."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "results" / "bench"


@dataclass(frozen=True)
class Ratio:
    """One measured ratio.

    Attributes:
        name: what over what.
        ratio: median of the ratios of neighbouring measurements.
        low: their lower quartile.
        high: their upper quartile.
        target: what it should be at most, or None for a peer's.
        n: pairs measured.
    """

    name: str
    ratio: float
    low: float
    high: float
    target: float | None
    n: int

    def __str__(self) -> str:
        """One line."""
        target = "peer" if self.target is None else f"target <= {self.target:g}"
        met = "" if self.target is None else ("  met" if self.ratio <= self.target else "  MISSED")
        return (
            f"{self.name:66} {self.ratio:6.3f}  [{self.low:.3f}, {self.high:.3f}]  "
            f"n={self.n}  {target}{met}"
        )


def seconds(action: Callable[[], object]) -> float:
    """How long one call takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def alternate(
    name: str,
    measured: Callable[[], object],
    reference: Callable[[], object],
    *,
    target: float | None = None,
    pairs: int = 30,
    warm_up: int = 3,
) -> Ratio:
    """Time two actions in turn, changing which comes first, and give the median ratio."""
    for _ in range(warm_up):
        measured()
        reference()
    ratios = []
    for number in range(pairs):
        if number % 2:
            below, above = seconds(reference), seconds(measured)
        else:
            above, below = seconds(measured), seconds(reference)
        ratios.append(above / below)
    return of(name, ratios, target)


def of(name: str, ratios: list[float], target: float | None) -> Ratio:
    """The summary of some ratios."""
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return Ratio(name, statistics.median(ratios), quartiles[0], quartiles[2], target, len(ratios))


def report(title: str, ratios: list[Ratio], *, keep: bool = False) -> None:
    """Print the lines, and keep them in ``results/bench/<title>.json``.

    Args:
        title: of the bench.
        ratios: its rows.
        keep: rows of before that have not been measured now stay: a part of the bench was run.
    """
    for ratio in ratios:
        print(ratio, flush=True)
    write(title, [asdict(ratio) for ratio in ratios], keep=keep)


def write(title: str, rows: list[dict[str, Any]], *, keep: bool) -> None:
    """Write the rows of a bench, each under its name; see :func:`report`."""
    path = RESULTS / f"{title}.json"
    before = json.loads(path.read_text()) if keep and path.exists() else []
    found = {row["name"]: row for row in [*before, *rows]}
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(found.values()), indent=2) + "\n")
