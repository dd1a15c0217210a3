"""What a table is: data in ``configs/table/*.yaml``, as types.

``yaml_reader`` reads them, ``spec_check`` says what is allowed. Nothing here reads results or
starts runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

BETTER = ("max", "min")
SUMMARIES = ("interval", "range")
RELATIONS = ("above", "below", "as_good", "same")
ORDERS = ("table", "shortest", "longest")


@dataclass
class Choice:
    """One row or one column.

    Attributes:
        value: what the axis's key is set to; a short name where the axis has no key.
        label: how it is called in the table; the value itself if null.
        overrides: further overrides that belong to it.
        only: of a row: the columns (label or value) it has cells in; all if null. A row
            that has none at a scale is not part of that scale.
    """

    value: Any = None
    label: str | None = None
    overrides: list[str] = field(default_factory=list)
    only: list[Any] | None = None

    def named(self, name: Any) -> bool:
        """Whether this line is meant by a label or a value."""
        return name == self.label or (self.value is not None and str(name) == str(self.value))


@dataclass
class Axis:
    """The rows, or the columns.

    Attributes:
        key: config key or group that is swept; empty if the overrides of the values say all.
        label: heading; the key if null.
        values: in the order of the table.
    """

    key: str = ""
    label: str | None = None
    values: list[Choice] = field(default_factory=list)


@dataclass
class Metric:
    """A figure of ``result.json`` that is shown for each cell.

    Attributes:
        key: its name under ``metrics``.
        label: heading; the key if null.
        format: Python format specification of one number.
        factor: multiplies the number, such as 100 for percent.
        better: which end is better, or null where neither is.
        summary: ``interval`` for mean and 95 % interval over seeds, ``range`` for figures
            that are counted exactly and only have a range if seeds differ.
        per: a row (label or value): each figure is divided by that row's figure of the same
            column and seed.
    """

    key: str = "test/accuracy"
    label: str | None = None
    format: str = ".4g"
    factor: float = 1.0
    better: str | None = None
    summary: str = "interval"
    per: Any = None


@dataclass
class Picture:
    """What the figure shows: ``y``, a metric, over ``x``.

    Where ``x`` is the key of an axis there is one line a ``series``, the key of the other;
    where it is a metric too, such as FLOPs, there is one point a cell.
    """

    x: str = ""
    y: str = ""
    series: str = ""


@dataclass
class Published:
    """Figures of a paper for one column and one metric.

    Attributes:
        values: by row (label or value): a number, or mean and standard deviation, in the unit
            the table shows.
        source: paper, arXiv id and table.
        column: label or value; may be empty if the table has but one.
        metric: key; the table's first if empty.
        n: runs behind each figure, where the source says so.
        confirmed: whether the figures were read in the source itself.
    """

    values: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    column: Any = ""
    metric: str = ""
    n: int | None = None
    confirmed: bool = False


@dataclass
class Term:
    """A cell's part in a claim: ``weight`` times its figure, or the one that was published."""

    row: Any = ""
    column: Any = ""
    weight: float = 1.0
    published: bool = False


@dataclass
class Claim:
    """A statement of a paper that seeds can decide.

    It is about the sum of all terms, D, in the unit the table shows: ``above``: D > by;
    ``below``: D < -by; ``as_good``: D > -by, and by is the margin that counts as no loss;
    ``same``: -by < D < by. What the metric holds for better plays no part: that a loss is lower
    is ``below``, and for ``as_good`` the other's comes first.

    Attributes:
        id: a word.
        claim: the statement, in a sentence.
        source: paper, arXiv id and place.
        method: config name of the method it speaks for.
        metric: key; the table's first if empty.
        relation: one of the four.
        by: bound or margin, at least 0; positive for ``as_good`` and ``same``.
        terms: the cells.
    """

    id: str = ""
    claim: str = ""
    source: str = ""
    method: str = ""
    metric: str = ""
    relation: str = "above"
    by: float = 0.0
    terms: list[Term] = field(default_factory=list)


@dataclass
class TableSpec:
    """A table at one of its scales.

    Attributes:
        name: that of its file; part of the folder ``results/<name>/<scale>``.
        title: stands above the table.
        scale: how near to a published set-up, such as ``quick`` or ``paper``.
        setup: what is trained on what and how long; part of the title of any scale but
            ``paper``.
        about: what to know when reading it, in a sentence or two.
        differences: where this scale departs from the published set-up, one line each.
        rows: the rows.
        columns: the columns; one cell a row if there are none.
        overrides: what all cells have in common.
        seeds: how many, from 0 on, or a list of them.
        metric: the figures shown; the first is the one that decides.
        picture: the figure; null for none.
        published: figures of papers.
        claims: statements of papers.
        variables: words that stand as ``{word}`` in overrides, so that a scale can say how
            much a row's share of it is.
        where: keeps the rows and columns it is true of, such as ``method in [rigl, set]``.
        order: of the runs: ``table``, ``shortest`` or ``longest`` first.
        plan: show what would be run, and run nothing.
    """

    name: str = ""
    title: str = ""
    scale: str = ""
    setup: str = ""
    about: str = ""
    differences: list[str] = field(default_factory=list)
    rows: Axis = field(default_factory=Axis)
    columns: Axis = field(default_factory=lambda: Axis(values=[Choice(label="")]))
    overrides: list[str] = field(default_factory=list)
    seeds: Any = 1
    metric: list[Metric] = field(default_factory=lambda: [Metric()])
    picture: Picture | None = None
    published: list[Published] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    variables: dict[str, Any] = field(default_factory=dict)
    where: str | None = None
    order: str = "table"
    plan: bool = False

    def find_metric(self, key: str) -> Metric | None:
        """The metric of a key; the first for an empty one."""
        return next((m for m in self.metric if m.key == key or not key), None)

    def has_published(self, row: Any, column: Any, key: str) -> bool:
        """Whether a paper has a figure for that cell and metric."""
        return any(
            self.find_metric(group.metric) is self.find_metric(key)
            and r.named(row)
            and any(r.named(name) for name in group.values)
            and self._is_column(c, column)
            and self._is_column(c, group.column)
            for group in self.published
            for r, c in self.cells()
        )

    def _is_column(self, choice: Choice, name: Any) -> bool:
        return choice.named(name) or (name == "" and len(self.columns.values) == 1)

    def cells(self) -> Iterator[tuple[Choice, Choice]]:
        """Row and column of every cell there is."""
        for row in self.rows.values:
            for column in self.columns.values:
                if row.only is None or any(column.named(name) for name in row.only):
                    yield row, column

    def has_cell(self, row: Any, column: Any) -> bool:
        """Whether there is a cell of that row and column."""
        return any(r.named(row) and self._is_column(c, column) for r, c in self.cells())
