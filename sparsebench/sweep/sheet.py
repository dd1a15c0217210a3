"""A table as text in rows and columns, before any format: the figures rounded and joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsebench.sweep.provenance import provenance
from sparsebench.sweep.results import Entry, Outcome, Results
from sparsebench.sweep.spec import Metric, TableSpec

NOTHING = "–"
#: How the legend names the fields that lead; a format that has no bold says it otherwise.
MARKED = "bold"


@dataclass(frozen=True)
class Text:
    """One field of a sheet; bold where it leads, see :meth:`Results.leaders`."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Section:
    """Rows under one heading; the heading is empty where there is but one section."""

    heading: str
    rows: tuple[tuple[Text, ...], ...]


@dataclass(frozen=True)
class Sheet:
    """What every format shows.

    Attributes:
        title: with the scale.
        about: what to know when reading it.
        head: headings of the fields; the first is that of the rows' names.
        sections: the rows.
        legend: how to read a field.
        missing: one line for each run without a result.
        made: one line for each fact about how it was made.
    """

    title: str
    about: str
    head: tuple[str, ...]
    sections: tuple[Section, ...]
    legend: str
    missing: tuple[str, ...]
    made: tuple[str, ...]


def sheet(results: Results, command: str) -> Sheet:
    """Lay a table out: one figure is shown with the columns side by side, several in sections."""
    spec = results.grid.spec
    name = spec.rows.label or spec.rows.key
    metrics = results.metrics
    if len(metrics) == 1:
        only = metrics[0].label or metrics[0].key
        head = tuple(_heading(results, j) or only for j in range(len(results.grid.columns)))
        sections = [_section(results, "", [(j, metrics[0]) for j in range(len(head))])]
    else:
        head = tuple(metric.label or metric.key for metric in metrics)
        sections = [
            _section(results, _heading(results, j), [(j, metric) for metric in metrics])
            for j in range(len(results.grid.columns))
        ]
    return Sheet(
        title=titled(spec),
        about=" ".join(spec.about.split()),
        head=(name, *head),
        sections=tuple(sections),
        legend=_legend(results, sections),
        missing=tuple(_missing(outcome) for outcome in results.unfinished),
        made=tuple(provenance(results, command)),
    )


def titled(spec: TableSpec) -> str:
    """The title, which says how near to a published set-up it is."""
    return f"{spec.title} ({spec.scale} scale)" if spec.scale else spec.title


def _heading(results: Results, column: int) -> str:
    axis, label = results.grid.spec.columns, results.grid.columns[column].label
    return f"{axis.label or axis.key} {label}".strip() if label else ""


def _section(results: Results, heading: str, fields: Sequence[tuple[int, Metric]]) -> Section:
    leaders = [results.leaders(j, metric) for j, metric in fields]
    rows = []
    for i, row in enumerate(results.grid.rows):
        texts = [
            Text(field_text(results.entries[i, j], metric), i in leading)
            for (j, metric), leading in zip(fields, leaders, strict=True)
        ]
        rows.append((Text(row.label), *texts))
    return Section(heading, tuple(rows))


def field_text(entry: Entry, metric: Metric) -> str:
    """A figure as it is shown: ``97.50 ± 0.42 (5)``, ``97.50 (2 of 5)``, ``4,020–4,030``.

    The number of seeds is that of the runs the figure is made of; ``of`` says that others
    are missing.
    """
    values = [metric.factor * value for value in entry.values(metric).values()]
    if not values:
        return f"{NOTHING} (0 of {entry.asked})" if metric.summary == "interval" else NOTHING
    if metric.summary == "range":
        ends = list(dict.fromkeys(format(end, metric.format) for end in (min(values), max(values))))
        return "–".join(ends)
    found = entry.estimate(metric)
    assert found is not None
    n = f"{found.n}" if found.n == entry.asked else f"{found.n} of {entry.asked}"
    half = "" if found.half is None else f" ± {found.half:{metric.format}}"
    return f"{found.mean:{metric.format}}{half} ({n})"


def _legend(results: Results, sections: Sequence[Section]) -> str:
    parts = []
    if any(metric.summary == "interval" for metric in results.metrics):
        shown = any("±" in field.text for s in sections for row in s.rows for field in row)
        what = "mean ± half the 95 % t-interval over seeds" if shown else "mean over seeds"
        parts.append(f"{what} (number of seeds)")
    if any(field.bold for section in sections for row in section.rows for field in row):
        parts.append(f"{MARKED}: the best mean of a sparse method, and means inside its interval")
    return "; ".join(parts)


def _missing(outcome: Outcome) -> str:
    return f"{outcome.run.label}: {outcome.status}: {outcome.error}"
