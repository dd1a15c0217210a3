"""The figure of a table: one metric over an axis, with its intervals."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench.files import write_atomically
from sparsebench.sweep.results import Entry, Results
from sparsebench.sweep.sheet import titled
from sparsebench.sweep.spec import Metric
from sparsebench.sweep.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's colours, which the colour-blind can tell apart; each has its own marker.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*X"
#: Of a scatter with more rows than this nobody can tell the points apart: each gets a line.
ROWS = 20
#: Means that differ by more than this factor are drawn on a logarithmic axis.
DECADES = 100.0
#: Labels of columns that are longer than this together stand aslant.
CHARACTERS = 60


def draw(results: Results) -> Figure | None:
    """Draw what the table's ``picture`` says, or None if there is nothing to draw."""
    from matplotlib.figure import Figure

    picture = results.grid.spec.picture
    metric = next((m for m in results.metrics if picture and m.key == picture.y), None)
    if picture is None or metric is None:
        return None
    against = next((m for m in results.metrics if m.key == picture.x), None)
    axis = results.grid.spec.columns.key or "column"
    across = picture.x == axis and len(results.grid.columns) > 1
    if not any(entry.estimate(metric) for entry in results.entries.values()):
        return None
    many = against is not None and len(results.grid.rows) > ROWS
    height = 4.2
    if many:
        height = 1.2 + 0.17 * len(results.grid.rows)
    elif against is not None:  # the legend has a line for each point
        points = len(results.grid.rows) * len(results.grid.columns)
        height = max(height, 1.0 + 0.145 * points)
    figure = Figure(figsize=(6.4, height), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    if many:
        _dots(axes, results, metric)
    elif against is not None:
        _scatter(axes, results, metric, against)
    elif across:
        _lines(axes, results, metric)
    else:
        _points(axes, results, metric)
    axes.set_title(titled(results.grid.spec), fontsize=9, loc="left", wrap=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    return figure


def _lines(axes: Axes, results: Results, metric: Metric) -> None:
    """One line a row, over the columns."""
    grid = results.grid
    places, label = _positions(results)
    labels = [column.label for column in grid.columns]
    long = sum(map(len, labels)) > CHARACTERS
    axes.set_xticks(places, labels, rotation=25 if long else 0, ha="right" if long else "center")
    ordered = all(isinstance(column.value, int | float) for column in grid.columns)
    axes.set_xlabel(label)
    axes.set_ylabel(_measured(results, metric))
    means = [e.mean for entry in results.entries.values() if (e := entry.estimate(metric))]
    if min(means) > 0 and max(means) > DECADES * min(means):
        axes.set_yscale("log")
    step = min((b - a for a, b in zip(places, places[1:], strict=False)), default=1.0)
    moving = [i for i in range(len(grid.rows)) if not results.flat(i)]
    for i, row in enumerate(grid.rows):
        entries = [results.entries.get((i, j)) for j in range(len(grid.columns))]
        if i not in moving:
            if level := next(filter(None, entries), None):
                _band(axes, level, metric, row.label)
            continue
        number = moving.index(i)
        shift = (
            0.018 * step * (number - (len(moving) - 1) / 2)
        )  # so that bars do not hide each other
        known = [
            (x + shift, e)
            for x, entry in zip(places, entries, strict=True)
            if entry and (e := entry.estimate(metric))
        ]
        _series(axes, known, number, row.label, joined=ordered)
    axes.legend(fontsize=8, frameon=False, loc="best")


def _series(
    axes: Axes, known: list[tuple[float, Estimate]], number: int, label: str, *, joined: bool
) -> None:
    """Points with their intervals; a line joins them where the columns are numbers."""
    halves = [e.half if e.half is not None else math.nan for _, e in known]
    axes.errorbar(
        [x for x, _ in known],
        [e.mean for _, e in known],
        yerr=halves,
        label=label,
        color=COLOURS[number % len(COLOURS)],
        marker=MARKERS[number % len(MARKERS)],
        linestyle=("-", "--", ":", "-.")[number // len(COLOURS) % 4] if joined else "none",
        markersize=5,
        linewidth=1.4,
        elinewidth=1.0,
        capsize=3,
    )


def _band(axes: Axes, entry: Entry, metric: Metric, label: str) -> None:
    """Runs that the columns do not change: a level, and its interval as a band."""
    found = entry.estimate(metric)
    if found is None:
        return
    axes.axhline(found.mean, color="#555555", linewidth=1.2, label=label)
    if found.low is not None and found.high is not None:
        axes.axhspan(found.low, found.high, color="#555555", alpha=0.15, linewidth=0)


def _points(axes: Axes, results: Results, metric: Metric) -> None:
    """One point a row, where there is nothing to draw a line over."""
    grid = results.grid
    for i in range(len(grid.rows)):
        entry = results.entries.get((i, 0))
        if entry and (found := entry.estimate(metric)):
            half = found.half if found.half is not None else math.nan
            axes.errorbar(
                found.mean, i, xerr=half, color=COLOURS[0], marker="o", markersize=5, capsize=3
            )
    axes.set_yticks(range(len(grid.rows)), [row.label for row in grid.rows])
    axes.set_ylim(len(grid.rows) - 0.5, -0.5)
    axes.set_xlabel(_measured(results, metric))
    axes.set_ylabel(grid.spec.rows.label or grid.spec.rows.key)


def _dots(axes: Axes, results: Results, metric: Metric) -> None:
    """One line a row, a point for each column; rows in the order of the first column."""
    grid = results.grid
    found = {place: e for place, entry in results.entries.items() if (e := entry.estimate(metric))}
    worst = min(found.values(), key=lambda e: e.mean).mean
    order = sorted(
        range(len(grid.rows)), key=lambda i: -found[i, 0].mean if (i, 0) in found else -worst
    )
    for j, column in enumerate(grid.columns):
        known = [(y, found[i, j]) for y, i in enumerate(order) if (i, j) in found]
        axes.errorbar(
            [e.mean for _, e in known],
            [y for y, _ in known],
            xerr=[e.half if e.half is not None else math.nan for _, e in known],
            color=COLOURS[j % len(COLOURS)],
            marker=MARKERS[j % len(MARKERS)],
            linestyle="none",
            markersize=4,
            elinewidth=0.8,
            capsize=2,
            label=column.label,
        )
    axes.set_yticks(range(len(order)), [grid.rows[i].label for i in order], fontsize=6)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_xlabel(_measured(results, metric))
    axes.legend(fontsize=7, frameon=False, loc="lower left", title=grid.spec.columns.label)


def _scatter(axes: Axes, results: Results, metric: Metric, against: Metric) -> None:
    """One point a cell: the colour says the row, the marker the column.

    Rows that no column changes are grey, a marker each.
    """
    grid = results.grid
    greys = [i for i in range(len(grid.rows)) if results.flat(i)]
    for i, row in enumerate(grid.rows):
        for j in range(len(grid.columns)):
            entry = results.entries.get((i, j))
            y = entry.estimate(metric) if entry else None
            x = entry.estimate(against) if entry else None
            if y is None or x is None:
                continue
            flat = i in greys
            if flat and (i, j) != min(place for place in results.entries if place[0] == i):
                continue
            axes.errorbar(
                x.mean,
                y.mean,
                yerr=y.half if y.half is not None else math.nan,
                color="#555555" if flat else COLOURS[i % len(COLOURS)],
                marker=MARKERS[(greys.index(i) if flat else j) % len(MARKERS)],
                markerfacecolor="white" if i >= len(COLOURS) else None,
                linestyle="none",
                markersize=6,
                elinewidth=1.0,
                capsize=3,
                label=", ".join(filter(None, [row.label, "" if flat else grid.columns[j].label])),
            )
    axes.set_xlabel(against.label or against.key)
    axes.set_ylabel(_measured(results, metric))
    axes.legend(fontsize=6, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _measured(results: Results, metric: Metric) -> str:
    """The metric's label, which also says what the bars are."""
    found = [entry.estimate(metric) for entry in results.entries.values()]
    bars = any(e and e.low is not None for e in found)
    return f"{metric.label or metric.key}{', mean and 95 % interval' if bars else ''}"


def _positions(results: Results) -> tuple[list[float], str]:
    """Where the columns stand, and what the axis is called.

    Sparsity is spaced by the logarithm of the density, so that 90, 95 and 98 % do not
    crowd; other numbers by their value; words evenly.
    """
    axis = results.grid.spec.columns
    values = [column.value for column in results.grid.columns]
    label = axis.label or axis.key
    if not all(isinstance(value, int | float) for value in values) or len(set(values)) < len(
        values
    ):
        return [float(i) for i in range(len(values))], label
    if axis.key == "sparsity" and all(0 <= value < 1 for value in values):
        return [-math.log10(1 - value) for value in values], f"{label} (spaced by log density)"
    return [float(value) for value in values], label


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write the figure as PNG and SVG, the same bytes each time."""
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = name
    options: dict[str, dict[str, Any]] = {
        "png": {"metadata": {"Software": None}},
        "svg": {"metadata": {"Date": None}},
    }
    paths = []
    for kind, more in options.items():
        path = folder / f"{name}.{kind}"
        write_atomically(path, partial(figure.savefig, format=kind, **more))
        paths.append(path)
    return paths
