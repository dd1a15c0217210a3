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
    columns = {
        name: [_number(line[i]) for line in lines]
        for i, name in enumerate(head)
        if name not in LEFT_OUT
    }
    if not lines or "epoch" not in columns:
        return {}
    return {n: values if n == "epoch" else _compact(values) for n, values in columns.items()}


def thinned(lines: list[list[str]], points: int) -> list[list[str]]:
    """So many lines, evenly spaced, with both ends."""
    if len(lines) <= points:
        return lines
    return [lines[round(k * (len(lines) - 1) / (points - 1))] for k in range(points)]


def rounded(value: float, digits: int = DIGITS) -> float:
    """A number to so many significant digits; whole numbers without a point."""
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() else short


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return rounded(value) if math.isfinite(value) else None


def _compact(values: list[float | None]) -> Curve:
    return values[0] if all(value == values[0] for value in values) else values
