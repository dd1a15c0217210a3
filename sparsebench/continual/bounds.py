"""What a run is measured against: finished runs of ``mode=joint`` and ``mode=independent``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsebench.continual import metrics
from sparsebench.errors import UserError, bad_value
from sparsebench.result import read_result

#: Rows by scenario; accuracy on each task in percent.
Rows = dict[str, metrics.Row]


def read_bound(folder: str | None, mode: str, tasks: int) -> Rows | None:
    """The accuracies of a bound; None if no folder is given.

    Args:
        folder: of a finished run of the same stream.
        mode: ``joint`` or ``independent``, which that run must be.
        tasks: that it must have.

    Raises:
        UserError: it is not such a run.
    """
    if folder is None:
        return None
    key, path = f"task.options.{mode}", Path(folder).expanduser()
    result = read_result(path) if path.is_dir() else None
    if result is None or result["status"] != "finished":
        raise bad_value(key, folder, "the folder of a finished run is needed")
    task = result["config"].get("task", {})
    found = task.get("options", {}).get("mode") if task.get("name") == "continual" else None
    if found != mode:
        raise bad_value(key, folder, f"a run of task=continual task.options.mode={mode} is needed")
    rows = {name: _row(matrix, mode) for name, matrix in result["accuracy_matrices"].items()}
    known = {name: row for name, row in rows.items() if row is not None}
    for row in known.values():
        if len(row) != tasks:
            raise UserError(f"{key}={folder}: that stream has {len(row)} tasks, not {tasks}")
    return known


def _row(matrix: metrics.Matrix | None, mode: str) -> metrics.Row | None:
    if matrix is None:
        return None
    return list(matrix[-1]) if mode == "joint" else [row[j] for j, row in enumerate(matrix)]


def figures(
    matrix: metrics.Matrix, scenario: str, bounds: dict[str, Rows | None]
) -> dict[str, Any]:
    """Intransigence and transfer of one scenario; None where there is nothing to compare with."""
    joint = (bounds["joint"] or {}).get(scenario)
    alone = (bounds["independent"] or {}).get(scenario)
    return {
        "intransigence": metrics.intransigence(matrix, joint) if joint else None,
        "transfer": metrics.transfer_from_scratch(matrix, alone) if alone else None,
    }
