"""A table as text in rows and columns, before any format: the figures rounded and joined."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparsebench.sweep.grid import Grid
from sparsebench.sweep.kinds import kinds
from sparsebench.sweep.provenance import provenance
from sparsebench.sweep.results import Entry, Figure, Outcome, Results
from sparsebench.sweep.spec import Metric, TableSpec

if TYPE_CHECKING:
    from sparsebench.sweep.claims import Verdict

NOTHING = "–"
#: How the legend names the fields that lead; a format that has no bold says it otherwise.
MARKED = "bold"


#: Headings of a sheet's claims.
CLAIM_HEAD = ("Claim", "Verdict", "Difference, 95 % interval", "n", "Source")


@dataclass(frozen=True)
class Text:
    """One field of a sheet.

    Attributes:
        text: what it shows.
        bold: where it leads, see :meth:`Results.leaders`.
        place: row and column number of the cell whose runs it shows; None for all others.
    """

    text: str
    bold: bool = False
    place: tuple[int, int] | None = None


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
        claims: one line of fields for each claim, below :data:`CLAIM_HEAD`.
        kinds: for each row its method's kind, below ``KIND_HEAD``.
        sources: one line for each source of published figures.
        differences: one line for each departure from the published set-up.
        missing: one line for each run without a result.
        made: one line for each fact about how it was made.
    """

    title: str
    about: str
    head: tuple[str, ...]
    sections: tuple[Section, ...]
    legend: str
    claims: tuple[tuple[str, ...], ...]
    kinds: tuple[tuple[str, ...], ...]
    sources: tuple[str, ...]
    differences: tuple[str, ...]
    missing: tuple[str, ...]
    made: tuple[str, ...]


@dataclass(frozen=True)
class _Field:
    """What stands in one field of a row: the measured or the published figure of a column."""

    column: int
    metric: Metric
    published: bool


def sheet(results: Results, command: str, verdicts: Sequence[Verdict] = ()) -> Sheet:
    """Lay a table out: one figure is shown with the columns side by side, several in sections.

    Args:
        results: the figures.
        command: what makes the table.
        verdicts: on the table's claims.
    """
    spec = results.grid.spec
    parts = [_fields(results, j) for j in range(len(results.grid.columns))]
    if len(results.metrics) == 1:
        flat = [field for part in parts for field in part]
        head = [heading(results.grid, f.column) or _label(f.metric) for f in flat]
        sections = [_section(results, "", flat)]
    else:
        flat = parts[0]
        head = [_label(field.metric) for field in flat]
        sections = [
            _section(results, heading(results.grid, j), part) for j, part in enumerate(parts)
        ]
    said = "published" if spec.scale == "paper" else "published (paper scale)"
    return Sheet(
        title=titled(spec),
        about=" ".join(spec.about.split()),
        head=(
            spec.rows.label or spec.rows.key,
            *(f"{h}, {said}" if f.published else h for h, f in zip(head, flat, strict=True)),
        ),
        sections=tuple(sections),
        legend=_legend(results, sections),
        claims=tuple(_claim(spec, verdict) for verdict in verdicts),
        kinds=tuple(kinds(results)),
        sources=tuple(_sources(results)),
        differences=tuple(" ".join(line.split()) for line in spec.differences),
        missing=tuple(_missing(outcome) for outcome in results.unfinished),
        made=tuple(provenance(results, command)),
    )


def _fields(results: Results, column: int) -> list[_Field]:
    """Fields of a row in one column: before a measured figure stands the published one, if any.

    Where there are several metrics the columns share their headings, so it is there in all
    of them if it is in one.
    """
    alone = len(results.metrics) == 1
    found = []
    for metric in results.metrics:
        if any(k == metric.key and (j == column or not alone) for _, j, k in results.published):
            found.append(_Field(column, metric, published=True))
        found.append(_Field(column, metric, published=False))
    return found


def _claim(spec: TableSpec, verdict: Verdict) -> tuple[str, ...]:
    """A claim and what the seeds say about it."""
    metric = spec.find_metric(verdict.claim.metric)
    notes = [verdict.note] if verdict.note else []
    if verdict.seeds_needed is not None:
        notes.append(f"about {verdict.seeds_needed:,} seeds would decide")
    said = verdict.verdict + (f" ({'; '.join(notes)})" if notes else "")
    difference = NOTHING
    if verdict.difference is not None and metric is not None:
        exact = metric.summary == "range"  # may be far smaller than what the table rounds to
        difference = format(verdict.difference, "+.2g" if exact else f"+{metric.format}")
        if verdict.low is not None and verdict.high is not None:
            ends = f"{verdict.low:+{metric.format}}", f"{verdict.high:+{metric.format}}"
            difference += f" [{ends[0]}, {ends[1]}]"
    claim = verdict.claim
    return claim.claim, said, difference, str(verdict.n), claim.source


def titled(spec: TableSpec) -> str:
    """The title; of any scale but the paper's it says what was trained instead."""
    if spec.scale == "paper" or not spec.scale:
        return spec.title
    return f"{spec.title} ({spec.scale} scale: {spec.setup})"


def _label(metric: Metric) -> str:
    return metric.label or metric.key


def heading(grid: Grid, column: int) -> str:
    """What a column is called, with what its axis is called."""
    axis, label = grid.spec.columns, grid.columns[column].label
    return f"{axis.label or axis.key} {label}".strip() if label else ""


def _section(results: Results, heading: str, fields: Sequence[_Field]) -> Section:
    leaders = [
        set() if field.published else results.leaders(field.column, field.metric)
        for field in fields
    ]
    columns = {field.column for field in fields}
    rows = []
    for i, row in enumerate(results.grid.rows):
        if not any((i, j) in results.entries for j in columns):
            continue
        texts = [
            _text(results, i, field, i in leading)
            for field, leading in zip(fields, leaders, strict=True)
        ]
        rows.append((Text(row.label), *texts))
    return Section(heading, tuple(rows))


def _text(results: Results, row: int, field: _Field, leads: bool) -> Text:
    place = (row, field.column)
    if field.published:
        figure = results.published.get((*place, field.metric.key))
        return Text(published_text(figure, field.metric) if figure else "")
    if place not in results.entries:
        return Text("")
    return Text(field_text(results.entries[place], field.metric), leads, place)


def published_text(figure: Figure, metric: Metric) -> str:
    """A published figure: ``93.10 ± 0.09 std``; one not read in its source has a ``?``."""
    std = "" if figure.std is None else f" ± {figure.std:{metric.format}} std"
    doubt = "" if figure.group.confirmed else " ?"
    return f"{figure.value:{metric.format}}{std}{doubt}"


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
    texts = [field for section in sections for row in section.rows for field in row]
    parts = []
    if any(metric.summary == "interval" for metric in results.metrics):
        shown = any("±" in text.text and text.place for text in texts)
        what = "mean ± half the 95 % t-interval over seeds" if shown else "mean over seeds"
        parts.append(f"{what} (number of seeds)")
    if any(text.bold for text in texts):
        parts.append(f"{MARKED}: the best mean of a sparse method, and means inside its interval")
    if any(" std" in text.text for text in texts):
        parts.append("std: standard deviation over the runs of the source")
    return "; ".join(parts)


def _sources(results: Results) -> Iterator[str]:
    """Where the published figures are from, and that they are of another set-up."""
    groups = [figure.group for figure in results.published.values()]
    yield from dict.fromkeys(
        f"{group.source}{'' if group.confirmed else ' (not read in the source itself: ?)'}"
        for group in groups
    )
    if groups and results.grid.spec.scale != "paper":
        yield "published figures are of the published set-up: this scale is not a reproduction"


def _missing(outcome: Outcome) -> str:
    return f"{outcome.run.label}: {outcome.status}: {outcome.error}"
