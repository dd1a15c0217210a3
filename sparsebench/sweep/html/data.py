"""What the page knows of the runs, as JSON: every run's figures, and the rest for some of them.

A page of thousands of runs would not open if it held all their curves. Config, log and curves are
put in while a budget lasts, the first seed of each cell first.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsebench.result import STATUSES, read_result
from sparsebench.sweep.html.curves import read_curves, rounded
from sparsebench.sweep.html.pareto import trade_offs
from sparsebench.sweep.results import Outcome, Results
from sparsebench.sweep.sheet import NOTHING, field_text, heading, published_text
from sparsebench.sweep.spec import Metric

#: Points of a curve, and of the density of each layer.
POINTS = 200
LAYER_POINTS = 60

#: Significant digits of a run's figures.
FIGURE_DIGITS = 10

#: Characters of ``error.txt``; its end says what went wrong.
LOG_LENGTH = 6000


#: Keys of a config that name folders of one machine, and change no result.
PLACES = ("runs", "data.root")


@dataclass(frozen=True)
class Budget:
    """How much of the runs goes into the page.

    Attributes:
        runs: with config, log and curves.
        characters: of JSON that these take together.
    """

    runs: int = 400
    characters: int = 4_000_000


def page_data(results: Results, budget: Budget | None = None) -> dict[str, Any]:
    """All that ``report.js`` draws from.

    Args:
        results: the table.
        budget: how much of the runs to put in.
    """
    grid = results.grid
    keys = sorted({key for outcome in results.outcomes.values() for key in outcome.metrics})
    details = _details(results, budget or Budget())
    configs = [detail.get("config", {}) for detail in details.values() if "config" in detail]
    common = shared(configs)
    folders = list(dict.fromkeys(str(o.run.folder.parent) for o in results.outcomes.values()))
    places = {name: number for number, name in enumerate(results.outcomes)}
    runs = []
    for name, outcome in results.outcomes.items():
        run = _run(outcome, keys, folders, {*grid.common, *grid.last})
        detail = details.get(name)
        if detail is not None:
            config = detail.pop("config", {})
            detail["differs"] = {k: v for k, v in config.items() if k not in common}
            run["detail"] = detail
        runs.append(run)
    return {
        "rows": [row.label for row in grid.rows],
        "columns": [heading(grid, j) for j in range(len(grid.columns))],
        "flat": [i for i in range(len(grid.rows)) if results.flat(i)],
        "seeds": list(grid.seeds),
        "cells": _cells(results, places),
        "metrics": [metric.label or metric.key for metric in results.metrics],
        "keys": keys,
        "folders": folders,
        "common": common,
        "runs": runs,
        "t": t_factors(len(grid.seeds)),
        "trade_offs": trade_offs(results),
    }


def _cells(results: Results, places: Mapping[str, int]) -> list[dict[str, Any]]:
    """Each cell with its figures, and its runs with theirs as the table would show them."""
    found = []
    for (i, j), entry in results.entries.items():
        by_metric = [(metric, entry.values(metric)) for metric in results.metrics]
        found.append(
            {
                "at": [i, j],
                "figures": [_shown(results, (i, j), metric) for metric in results.metrics],
                "runs": [places[o.run.identity] for o in entry.by_seed.values()],
                "by_seed": [
                    [
                        format(m.factor * values[seed], m.format) if seed in values else NOTHING
                        for m, values in by_metric
                    ]
                    for seed in entry.by_seed
                ],
            }
        )
    return found


def _shown(results: Results, place: tuple[int, int], metric: Metric) -> list[str]:
    """A cell's figure; where there is a published one, that and its source too."""
    known = results.published.get((*place, metric.key))
    published = [published_text(known, metric), known.group.source] if known else []
    return [field_text(results.entries[place], metric), *published]


def _run(
    outcome: Outcome, keys: Sequence[str], folders: Sequence[str], common: set[str]
) -> dict[str, Any]:
    """What is known of every run."""
    run = outcome.run
    found: dict[str, Any] = {
        "id": run.identity,
        "label": run.label,
        "status": outcome.status,
        "folder": folders.index(str(run.folder.parent)),
        "overrides": [override for override in run.overrides if override not in common],
    }
    if outcome.error:
        found["error"] = outcome.error
    if outcome.metrics:
        found["figures"] = [_figure(outcome.metrics.get(key)) for key in keys]
    if outcome.written:
        when = datetime.datetime.fromtimestamp(outcome.written, datetime.UTC)
        found["written"] = when.strftime("%Y-%m-%d %H:%M UTC")
    return found


def _figure(value: Any) -> Any:
    if isinstance(value, float):
        return rounded(value, FIGURE_DIGITS) if math.isfinite(value) else None
    return value


def _details(results: Results, budget: Budget) -> dict[str, dict[str, Any]]:
    """Config, log and curves by identity, as far as the budget goes."""
    found: dict[str, dict[str, Any]] = {}
    left = budget.characters
    for name in _by_seed(results):
        if len(found) >= budget.runs or left <= 0:
            break
        if name not in found:
            found[name] = detail = _detail(results.outcomes[name])
            left -= len(json.dumps(detail))
    return found


def _by_seed(results: Results) -> Iterator[str]:
    """Identities, the first seed of all cells first, and of these one column after the other.

    A picture of curves has the rows of a column: some whole pictures are better than all of
    them in part.
    """
    places = sorted(results.entries, key=lambda place: (place[1], place[0]))
    for seed in results.grid.seeds:
        for place in places:
            if seed in results.entries[place].by_seed:
                yield results.entries[place].by_seed[seed].run.identity


def _detail(outcome: Outcome) -> dict[str, Any]:
    folder = outcome.run.folder
    result = (read_result(folder) if outcome.status in STATUSES else None) or {}
    layers = sorted(result.get("layers", {}).items(), key=lambda pair: pair[1].get("order", 0))
    found = {
        "config": {
            key: value for key, value in flat(result.get("config", {})).items() if key not in PLACES
        },
        "notes": [str(note) for note in result.get("notes", [])],
        "log": _log(outcome),
        "environment": _environment(result.get("environment", {})),
        "layers": [[n, v.get("shape"), v.get("weights"), v.get("nonzeros")] for n, v in layers],
        "curves": read_curves(folder / "metrics.csv", POINTS),
        "density": read_curves(folder / "density.csv", LAYER_POINTS),
    }
    return {key: value for key, value in found.items() if value}


def _environment(made: Mapping[str, Any]) -> dict[str, str]:
    """What a run was made with; its command without the folders of one machine."""
    found = flat(made)
    if "command" in found:
        words = found["command"].split(" ")
        found["command"] = " ".join(w for w in words if w.partition("=")[0] not in PLACES)
    return found


def _log(outcome: Outcome) -> str:
    """The end of a failed run's ``error.txt``."""
    if outcome.status != "failed":
        return ""
    try:
        text = (outcome.run.folder / "error.txt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return text if len(text) <= LOG_LENGTH else f"…\n{text[-LOG_LENGTH:]}"


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Keys with dots, and their values as they are written on a command line."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return found


def shared(configs: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What all configs have in common."""
    first = configs[0] if configs else {}
    return {k: v for k, v in first.items() if all(config.get(k) == v for config in configs)}


def t_factors(most: int) -> list[float | None]:
    """Half a 95 % t-interval in standard deviations, by number of runs; None below three."""
    from sparsebench.sweep.statistics import LEAST, Student

    return [
        rounded(Student(0.0, 1.0, n - 1).interval(0.95)[1] / math.sqrt(n), 8)
        if n >= LEAST
        else None
        for n in range(most + 1)
    ]
