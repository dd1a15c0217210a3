"""Curves of a run as few numbers: thinned, rounded, and one number where nothing changes."""

from __future__ import annotations

import csv
import math
from pathlib import Path

#: Columns of ``metrics.csv`` that say the same as another one.
LEFT_OUT = {"step", "nonzeros", "flops/training"}

#: Significant digits of a point of a curve.
DIGITS = 5

Curve = list[float | None] | float | None


def read_curves(path: Path, points: int) -> dict[str, Curve]:
    """Columns of a CSV file of one line an epoch; none if it is not there or damaged.

    Args:
        path: ``metrics.csv`` or ``density.csv`` of a run.
        points: lines kept at most: the first, the last, and evenly between them.

    Returns:
        By column its values, or its only value where all lines have the same; ``epoch`` is
        always a list.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            head, *lines = list(csv.reader(file))
    except (OSError, ValueError, csv.Error):
        return {}
    lines = [line for line in thinned(lines, points) if len(line) == len(head)]
    if not lines or "epoch" not in head:
        return {}
    return {
        name: _curve([line[i] for line in lines], always=name == "epoch")
        for i, name in enumerate(head)
        if name not in LEFT_OUT
    }


def thinned(lines: list[list[str]], points: int) -> list[list[str]]:
    """So many lines, evenly spaced, with both ends."""
    if len(lines) <= points:
        return lines
    return [lines[round(k * (len(lines) - 1) / (points - 1))] for k in range(points)]


def rounded(value: float, digits: int = DIGITS) -> float:
    """A number to so many significant digits; whole numbers without a point."""
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() else short


def _curve(texts: list[str], *, always: bool) -> Curve:
    """The numbers of a column; one if all are the same, unless a list is ``always`` wanted."""
    if not always and texts.count(texts[0]) == len(texts):
        return _number(texts[0])  # most layers of most methods: not worth reading every line
    values = [_number(text) for text in texts]
    return values if always or values.count(values[0]) < len(values) else values[0]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return rounded(value) if math.isfinite(value) else None
