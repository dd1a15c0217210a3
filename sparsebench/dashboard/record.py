"""A run's files, read for a view of it; nothing of them is changed."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsebench.files import read_json
from sparsebench.result import NAME, STATUSES


class Unreadable(Exception):
    """A file of a run is damaged or missing; says which, in a line."""


@dataclass(frozen=True)
class Record:
    """What a run wrote.

    Attributes:
        folder: its folder, named by its identity.
        config: the resolved config as plain containers.
        rows: of ``metrics.csv``, one for each epoch.
        densities: of ``density.csv``, by layer.
        metrics: of ``result.json``; empty if the run has not ended.
        status: of ``result.json``, or ``unfinished``.
    """

    folder: Path
    config: Mapping[str, Any]
    rows: list[dict[str, float]]
    densities: list[dict[str, float]]
    metrics: Mapping[str, Any]
    status: str


def read_record(folder: Path) -> Record:
    """Read a run's folder.

    Raises:
        Unreadable: a file is damaged, or one that this run must have is missing.
    """
    config = _config(folder / "config.yaml")
    result = _result(folder / NAME)
    metrics, status = result.get("metrics", {}), result.get("status", "unfinished")
    needed = bool(metrics.get("epochs"))  # accounting has none, nor a run that failed in its first
    return Record(
        folder=folder,
        config=config,
        rows=_table(folder / "metrics.csv", {"epoch", "step"}, needed),
        densities=_table(folder / "density.csv", {"epoch"}, needed),
        metrics=metrics,
        status=status,
    )


def _config(path: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Unreadable(f"{path} is missing") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        raise Unreadable(f"{path} is damaged") from None
    needed = ("task", "method", "data", "model", "logger")
    whole = isinstance(found, dict) and {"sparsity", "seed"} <= found.keys()
    if not whole or not all(isinstance(found.get(key), dict) for key in needed):
        raise Unreadable(f"{path} is damaged")
    assert isinstance(found, dict)
    return found


def _result(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    found = read_json(path)
    whole = isinstance(found, dict) and isinstance(found.get("metrics"), dict)
    if not isinstance(found, dict) or not whole or found.get("status") not in STATUSES:
        raise Unreadable(f"{path} is damaged")
    return found


def _table(path: Path, columns: set[str], needed: bool) -> list[dict[str, float]]:
    """Rows of numbers, with some columns that must be there."""
    if not path.exists():
        if needed:
            raise Unreadable(f"{path} is missing")
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = [{name: float(value) for name, value in row.items()} for row in reader]
    except (OSError, ValueError, TypeError):  # bytes, words or fields that are no row of numbers
        rows = []
    if not rows or not columns <= rows[0].keys():
        raise Unreadable(f"{path} is damaged")
    return rows
