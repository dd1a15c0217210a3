"""What accuracy costs: the deciding figure of each cell against its FLOPs, and the front."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sparsebench.sweep.results import Results
from sparsebench.sweep.spec import Metric

#: What a cell costs, relative to the dense model's.
COSTS = (
    Metric("flops/training_relative", "Training FLOPs"),
    Metric("flops/inference_relative", "Inference FLOPs"),
)


def trade_offs(results: Results) -> list[dict[str, Any]]:
    """One picture for each kind of FLOPs that at least two cells have.

    Returns:
        ``cost`` and ``gain`` (labels) and ``points``: cell ``at`` row and column, its mean
        ``cost`` and mean ``gain`` over seeds, ``half`` its 95 % t-interval, and whether it is
        on the ``front``. Rows that the columns do not change have one point.
    """
    gain = next((m for m in results.metrics if m.better and m.summary == "interval"), None)
    if gain is None:
        return []
    found = []
    for cost in COSTS:
        points = list(_points(results, cost, gain))
        on_front = front(
            [(p["cost"], p["gain"] if gain.better == "max" else -p["gain"]) for p in points]
        )
        for point, leads in zip(points, on_front, strict=True):
            point["front"] = leads
        if len(points) > 1:
            found.append(
                {"cost": cost.label, "gain": gain.label or gain.key, "better": gain.better}
                | {"points": points}
            )
    return found


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Whether no other point costs no more and gains no less, and is better in one of them.

    Args:
        points: cost and gain of each.
    """
    best: dict[tuple[float, float], bool] = {}
    highest = -float("inf")
    for cost, gain in sorted(set(points), key=lambda point: (point[0], -point[1])):
        best[cost, gain] = gain > highest
        highest = max(highest, gain)
    return [best[point] for point in points]


def _points(results: Results, cost: Metric, gain: Metric) -> Iterator[dict[str, Any]]:
    flat = {i for i in range(len(results.grid.rows)) if results.flat(i)}
    seen = set()
    for (i, j), entry in results.entries.items():
        spent, found = entry.estimate(cost), entry.estimate(gain)
        if spent is None or found is None or i in seen:
            continue
        seen |= {i} & flat
        yield {"at": [i, j], "cost": spent.mean, "gain": found.mean, "half": found.half}
