"""The one model of a table: for each row and column, the figures of its runs by seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sparsebench.result import NAME, read_result
from sparsebench.sweep.cells import Cells, Run
from sparsebench.sweep.grid import Grid
from sparsebench.sweep.job import Report
from sparsebench.sweep.spec import Metric, Published
from sparsebench.sweep.statistics import Estimate, estimate


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        run: the run.
        status: ``finished``, ``diverged``, ``failed``, ``refused``, ``killed``,
            ``interrupted`` or ``missing``.
        error: why it has no figures.
        metrics: its figures, if it has finished.
        environment: what it was made with.
        written: when (seconds since the epoch).
    """

    run: Run
    status: str
    error: str
    metrics: Mapping[str, Any]
    environment: Mapping[str, Any]
    written: float


#: By how much a row may miss the sparsity of its column, by rounding, and still lead.
SLACK = 0.005


@dataclass(frozen=True)
class Entry:
    """The runs of one row and column.

    Attributes:
        by_seed: the outcome of each seed that was asked for.
        references: of the same column, by what ``per`` of a metric calls their row.
    """

    by_seed: Mapping[int, Outcome]
    references: Mapping[Any, Entry] = field(default_factory=dict)

    @property
    def asked(self) -> int:
        """How many seeds were asked for."""
        return len(self.by_seed)

    @property
    def sparse(self) -> bool:
        """Whether its method is sparse."""
        return all(outcome.run.sparse for outcome in self.by_seed.values())

    def reaches(self, sparsity: object) -> bool:
        """Whether it is as sparse as asked; a smaller dense network has no zeros at all."""
        found = [o.metrics.get("sparsity", sparsity) for o in self.by_seed.values()]
        return not isinstance(sparsity, float) or all(
            zeros == 0.0 or zeros >= sparsity - SLACK for zeros in found
        )

    def values(self, metric: Metric) -> dict[int, float]:
        """A figure by seed, of the runs that have finished and have it."""
        found = {s: o.metrics.get(metric.key) for s, o in self.by_seed.items()}
        values = {
            s: v for s, v in found.items() if isinstance(v, int | float) and not isinstance(v, bool)
        }
        if metric.per is None:
            return values
        reference = self.references.get(metric.per)
        base = reference.values(replace(metric, per=None)) if reference else {}
        return {s: v / base[s] for s, v in values.items() if base.get(s)}

    def estimate(self, metric: Metric) -> Estimate | None:
        """Mean and interval in the metric's unit."""
        found = estimate(self.values(metric).values())
        return found.scaled(metric.factor) if found else None


@dataclass(frozen=True)
class Figure:
    """A published figure, in the unit the table shows.

    Attributes:
        value: the mean, or the only figure there is.
        std: standard deviation over runs, where it was published.
        group: the source and what it belongs to.
    """

    value: float
    std: float | None
    group: Published


@dataclass(frozen=True)
class Results:
    """A table with its figures.

    Attributes:
        grid: rows, columns and seeds.
        entries: by row number and column number; some cells may not be there.
        outcomes: by identity; equal runs are there once.
        metrics: the figures that are shown.
        published: by row number, column number and metric.
    """

    grid: Grid
    entries: Mapping[tuple[int, int], Entry]
    outcomes: Mapping[str, Outcome]
    metrics: tuple[Metric, ...]
    published: Mapping[tuple[int, int, str], Figure] = field(default_factory=dict)

    @property
    def unfinished(self) -> list[Outcome]:
        """The runs without figures."""
        return [outcome for outcome in self.outcomes.values() if outcome.status != "finished"]

    def flat(self, row: int) -> bool:
        """Whether a row is the same runs in all columns, as dense training is."""
        found = [
            {o.run.identity for o in entry.by_seed.values()}
            for (i, _), entry in self.entries.items()
            if i == row
        ]
        return len(found) > 1 and all(names == found[0] for names in found)

    def leaders(self, column: int, metric: Metric) -> set[int]:
        """Rows of sparse methods with the best mean, or a mean inside the best one's interval.

        Where there is no interval, or the metric has no better end, nothing leads. A row that is
        less sparse than its column says does not lead.
        """
        columns = self.grid.spec.columns
        asked = self.grid.columns[column].value if columns.key == "sparsity" else None
        sign = {"max": 1.0, "min": -1.0}.get(metric.better or "", 0.0)
        found = {
            i: e
            for (i, j), entry in self.entries.items()
            if j == column
            and entry.sparse
            and entry.reaches(asked)
            and (e := entry.estimate(metric))
        }
        if not sign or len(found) < 2:
            return set()
        best = max(found.values(), key=lambda e: sign * e.mean)
        if best.low is None or best.high is None:
            return set()
        return {i for i, e in found.items() if best.low <= e.mean <= best.high}


def collect(grid: Grid, cells: Cells, reports: Mapping[str, Report]) -> Results:
    """Read the results of all runs of a grid.

    Args:
        grid: rows, columns and seeds.
        cells: the runs behind them.
        reports: how runs ended that have no result.
    """
    outcomes = {name: _outcome(run, reports.get(name)) for name, run in cells.runs.items()}
    entries = {
        (i, j): Entry({seed: outcomes[cells.of[i, j, seed]] for seed in grid.seeds})
        for i, j in grid.places
    }
    for per in {metric.per for metric in grid.spec.metric} - {None}:
        entries = {place: _beside(grid, entries, place, per) for place in entries}
    had = [m for m in grid.spec.metric if any(m.key in o.metrics for o in outcomes.values())]
    shown = tuple(had or grid.spec.metric[:1])
    return Results(grid, entries, outcomes, shown, _published(grid))


def _beside(
    grid: Grid, entries: Mapping[tuple[int, int], Entry], place: tuple[int, int], per: Any
) -> Entry:
    """A cell with the one of another row that its figures are divided by."""
    found = [e for (i, j), e in entries.items() if j == place[1] and grid.rows[i].named(per)]
    entry = entries[place]
    return replace(entry, references={**entry.references, per: found[0]}) if found else entry


def _published(grid: Grid) -> dict[tuple[int, int, str], Figure]:
    """The published figures of the cells that the grid has; the first source of each counts."""
    found: dict[tuple[int, int, str], Figure] = {}
    for group in grid.spec.published:
        metric = grid.spec.find_metric(group.metric)
        for row, value in group.values.items():
            place = grid.place(row, group.column)
            if place is None or metric is None:
                continue
            mean, std = value if isinstance(value, list) else (value, None)
            found.setdefault((*place, metric.key), Figure(mean, std, group))
    return found


def _outcome(run: Run, report: Report | None) -> Outcome:
    result = read_result(run.folder)
    if report and report.status not in ("finished", "diverged"):
        return Outcome(run, report.status, report.error, {}, {}, 0.0)
    if result is None:
        return Outcome(run, "missing", "it was not run", {}, {}, 0.0)
    finished = result["status"] == "finished"
    return Outcome(
        run=run,
        status=result["status"],
        error=result.get("error") or "",
        metrics=result["metrics"] if finished else {},
        environment=result.get("environment", {}) if finished else {},
        written=(run.folder / NAME).stat().st_mtime,
    )


def folder_of(results: Results, runs: Path, digest: str) -> Path:
    """Where the files of a table go; what is not a table of ours lands beside the runs."""
    spec = results.grid.spec
    if results.grid.changed:
        return runs.expanduser() / "tables" / f"{spec.name}-{digest}"
    return Path("results") / spec.name / spec.scale
