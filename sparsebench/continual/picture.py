"""The accuracies of a stream as a table and as pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsebench.continual.metrics import accuracy_after
from sparsebench.files import write_atomically, write_text

Matrices = Mapping[str, Sequence[Sequence[float | None]] | None]


def write_table(path: Path, matrices: Matrices) -> None:
    """One line for each scenario, task learned and task tested that were measured.

    Args:
        path: CSV file to write.
        matrices: R by scenario; None where the scenario has none.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["scenario", "after_task", "on_task", "accuracy"])
    for scenario, matrix in matrices.items():
        for i, row in enumerate(matrix or ()):
            writer.writerows([scenario, i, j, a] for j, a in enumerate(row) if a is not None)
    write_text(path, out.getvalue())


def draw(path: Path, matrices: Matrices, title: str) -> None:
    """R of each scenario as a picture, and the mean accuracy after each task as a curve."""
    from matplotlib.figure import Figure

    known = {name: matrix for name, matrix in matrices.items() if matrix}
    figure = Figure(figsize=(4.2 * (len(known) + 1), 3.6), layout="constrained")
    axes = figure.subplots(1, len(known) + 1, squeeze=False)[0]
    for axis, (name, matrix) in zip(axes, known.items(), strict=False):
        _heat(figure, axis, name, matrix)
        curve = accuracy_after(matrix)
        axes[-1].plot([_number(a) for a in curve], marker="o", label=name.replace("_", "-"))
    axes[-1].set(xlabel="after task", title="mean accuracy on tasks so far", ylim=(0, 102))
    axes[-1].legend(fontsize="small", frameon=False)
    axes[-1].grid(alpha=0.3)
    figure.suptitle(title, fontsize="medium")
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))


def _heat(figure: Any, axis: Any, name: str, matrix: Sequence[Sequence[float | None]]) -> None:
    values = [[_number(a) for a in row] for row in matrix]
    image = axis.imshow(values, vmin=0, vmax=100, cmap="viridis", interpolation="none")
    tasks = range(len(matrix))
    if len(matrix) <= 10:
        for i in tasks:
            for j in tasks:
                if matrix[i][j] is not None:
                    colour = "white" if values[i][j] < 60 else "black"
                    axis.text(j, i, f"{values[i][j]:.0f}", ha="center", va="center",
                              color=colour, fontsize="x-small")  # fmt: skip
        axis.set(xticks=list(tasks), yticks=list(tasks))
    axis.set(xlabel="on task", ylabel="after task", title=f"accuracy, {name.replace('_', '-')}")
    figure.colorbar(image, ax=axis, label="%")


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
