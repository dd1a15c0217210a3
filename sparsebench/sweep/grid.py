"""From a table and the command line to a grid: which overrides stand for which cell."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from sparsebench.config.schema import IGNORED
from sparsebench.errors import UserError, bad_value
from sparsebench.sweep import where
from sparsebench.sweep.spec import Axis, Choice, Metric, Picture, TableSpec
from sparsebench.sweep.spec_check import seeds_of

#: What a grid without a table shows of its runs, as far as they have it.
METRICS = [
    Metric("test/accuracy", "accuracy (%)", ".2f", 100.0, "max"),
    Metric("nonzeros", "non-zeros", ",.0f", summary="range"),
    Metric("flops/inference_relative", "inference FLOPs", ".3f", summary="range"),
    Metric("flops/training_relative", "training FLOPs", ".3f", summary="range"),
]


@dataclass(frozen=True)
class Line:
    """A row or a column: how it is called, its value, and the overrides that make it.

    A row may have cells in some columns ``only``, see :class:`Choice`.
    """

    label: str
    value: Any
    overrides: tuple[str, ...]
    only: tuple[Any, ...] | None = None

    def named(self, name: Any) -> bool:
        """Whether this line is meant by a label or a value."""
        return name == self.label or (self.value is not None and str(name) == str(self.value))


@dataclass(frozen=True)
class Grid:
    """Rows, columns and seeds; each cell is the runs of one row and column.

    Attributes:
        spec: the table, or what stands for one.
        rows: the rows.
        columns: the columns.
        common: overrides of all cells that rows and columns may change.
        last: overrides of the command line, which nothing changes.
        seeds: the replicates.
        changed: whether it is not what a YAML in ``configs/table`` says.
        left_out: row and column numbers of cells that a filter takes out.
    """

    spec: TableSpec
    rows: tuple[Line, ...]
    columns: tuple[Line, ...]
    common: tuple[str, ...]
    last: tuple[str, ...]
    seeds: tuple[int, ...]
    changed: bool
    left_out: frozenset[tuple[int, int]] = frozenset()

    @cached_property
    def places(self) -> tuple[tuple[int, int], ...]:
        """Row and column numbers of the cells there are."""
        return tuple(p for p in _places(self.rows, self.columns) if p not in self.left_out)

    def place(self, row: Any, column: Any) -> tuple[int, int] | None:
        """Row and column number of a cell by labels or values; None if it is not there."""
        for i, j in self.places:
            only_column = column == "" and len(self.columns) == 1
            if self.rows[i].named(row) and (self.columns[j].named(column) or only_column):
                return i, j
        return None

    def overrides(self, row: Line, column: Line) -> list[str]:
        """Overrides of a cell, without the seed; what comes last wins."""
        return unique([*self.common, *row.overrides, *column.overrides, *self.last])


@dataclass(frozen=True)
class Asked:
    """One override of the command line: a key, and the values it shall take."""

    key: str
    values: tuple[str, ...]
    swept: bool

    @property
    def name(self) -> str:
        """The key without Hydra's prefix."""
        return self.key.lstrip("+~")

    def lines(self) -> list[str]:
        """As overrides."""
        return [f"{self.key}={value}" for value in self.values]


def read_overrides(arguments: Sequence[str], config_loader: Any = None) -> list[Asked]:
    """What the command line asks for, by Hydra's grammar; a key that comes again replaces.

    Raises:
        UserError: a sweep that has no end of values.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    found: dict[str, Asked] = {}
    for override in OverridesParser.create(config_loader=config_loader).parse_overrides(
        list(arguments)
    ):
        key = override.get_key_element()
        if not override.is_sweep_override():
            found[key] = Asked(key, (override.get_value_element_as_str(),), False)
        elif override.is_discrete_sweep():
            found[key] = Asked(key, tuple(map(str, override.sweep_string_iterator())), True)
        else:
            raise UserError(
                f"{override.input_line}: an interval has no grid; range(start, stop, step) and "
                f"choice(a, b) have"
            )
        if not found[key].values:
            raise UserError(f"{override.input_line}: no value to sweep over")
    return list(found.values())


def table_grid(spec: TableSpec, asked: Iterable[Asked], changed: bool = False) -> Grid:
    """The grid of a table, narrowed or changed by the command line.

    Args:
        spec: the table.
        asked: overrides of the command line that are not about the table itself.
        changed: whether the table itself is not as its YAML says.
    """
    columns = _lines(spec.columns)
    rows = [line for line in _lines(spec.rows) if _places([line], columns)]
    seeds, last, extra = seeds_of(spec), [], []
    for item in asked:
        changed |= not _ignored(item.name)
        if item.name == "seed":
            seeds = _seeds(item)
        elif item.name == spec.rows.key:
            rows = _narrowed(rows, item)
        elif item.name == spec.columns.key:
            columns = _narrowed(columns, item)
        elif item.swept:
            extra.append(item)
        else:
            last += item.lines()
    if extra:
        rows = _product([rows, *(_axis_lines(item, f"{item.name}=") for item in extra)])
    left_out: frozenset[tuple[int, int]] = frozenset()
    if spec.where:
        rows, columns, left_out = _filtered(spec, rows, columns)
        changed = True
    if changed:
        about = f"Table '{spec.name}' with other settings than its own: see the command."
        spec = replace(spec, about=about)
    return Grid(
        spec=spec,
        rows=tuple(rows),
        columns=tuple(columns),
        common=tuple(spec.overrides),
        last=tuple(last),
        seeds=tuple(seeds),
        changed=changed,
        left_out=left_out,
    )


def _places(rows: Sequence[Line], columns: Sequence[Line]) -> list[tuple[int, int]]:
    """Numbers of the cells there are."""
    return [
        (i, j)
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
        if row.only is None or any(column.named(name) for name in row.only)
    ]


def _filtered(
    spec: TableSpec, rows: Sequence[Line], columns: Sequence[Line]
) -> tuple[list[Line], list[Line], frozenset[tuple[int, int]]]:
    """The lines with cells that ``where`` is true of, and the cells of theirs it is not."""
    expression = where.parse(spec.where or "")
    known = {name for name in (spec.rows.key, spec.columns.key, "row", "column") if name}
    if not where.words(expression) & known:
        said = f"compares none of {', '.join(sorted(known))}"
        raise bad_value("table.where", spec.where, said, known)
    kept = [
        (i, j)
        for i, j in _places(rows, columns)
        if where.holds(
            expression,
            {
                "row": rows[i].label,
                "column": columns[j].label,
                **({spec.rows.key: rows[i].value} if spec.rows.key else {}),
                **({spec.columns.key: columns[j].value} if spec.columns.key else {}),
            },
        )
    ]
    if not kept:
        values = [f"{line.value}" for line in rows if line.value is not None]
        said = f"is true of no cell ({spec.rows.key or 'row'} is one of {', '.join(values)})"
        raise bad_value("table.where", spec.where, said)
    row_numbers = sorted({i for i, _ in kept})
    column_numbers = sorted({j for _, j in kept})
    left_out = {
        (k, n)
        for k, i in enumerate(row_numbers)
        for n, j in enumerate(column_numbers)
        if (i, j) not in kept
    }
    return (
        [rows[i] for i in row_numbers],
        [columns[j] for j in column_numbers],
        frozenset(left_out),
    )


def free_grid(asked: Iterable[Asked], subject: str, method: str, seed: int) -> Grid:
    """The grid of a command line alone: its last swept key makes the columns.

    Args:
        asked: the command line; a single swept key makes the rows.
        subject: what the runs are about, for the title.
        method: names the only row, where nothing but seeds is swept.
        seed: where the command line has none.
    """
    seeds, last, axes = [seed], [], []
    for item in asked:
        if item.name == "seed":
            seeds = _seeds(item)
        elif item.swept:
            axes.append(item)
        else:
            last += item.lines()
    columns = axes.pop() if len(axes) > 1 else None
    row_key = ", ".join(item.name for item in axes) or "method"
    column_key = columns.name if columns else ""
    spec = TableSpec(
        name="grid",
        title=f"{subject}: {' × '.join(filter(None, (row_key, column_key)))}",
        rows=Axis(row_key),
        columns=Axis(column_key),
        metric=[replace(metric) for metric in METRICS],
        picture=Picture(column_key or row_key, METRICS[0].key, row_key if column_key else ""),
    )
    rows = _product([_axis_lines(item) for item in axes]) if axes else [Line(method, method, ())]
    lines = _axis_lines(columns) if columns else [Line("", None, ())]
    return Grid(
        spec=spec,
        rows=tuple(rows),
        columns=tuple(lines),
        common=(),
        last=tuple(last),
        seeds=tuple(seeds),
        changed=True,
    )


def unique(overrides: Iterable[str]) -> list[str]:
    """Overrides with one for each key: the last."""
    found: dict[str, str] = {}
    for override in overrides:
        key = override.partition("=")[0].lstrip("+")
        found.pop(key, None)
        found[key] = override
    return list(found.values())


def _ignored(name: str) -> bool:
    """Whether a key can't change results, so that the table is still the YAML's."""
    return any(name == key or name.startswith(f"{key}.") for key in IGNORED)


def _seeds(item: Asked) -> list[int]:
    if not all(re.fullmatch(r"\d+", value) for value in item.values):
        raise UserError(f"seed={','.join(item.values)}: whole numbers of at least 0 are needed")
    return list(dict.fromkeys(map(int, item.values)))


def _lines(axis: Axis) -> list[Line]:
    return [_line(axis.key, choice) for choice in axis.values]


def _line(key: str, choice: Choice) -> Line:
    own = [f"{key}={_written(choice.value)}"] if key else []
    label = choice.label or (str(choice.value) if key or choice.value is not None else "")
    only = None if choice.only is None else tuple(choice.only)
    return Line(label, choice.value, (*own, *choice.overrides), only)


def _narrowed(lines: Sequence[Line], item: Asked) -> list[Line]:
    """The lines of the given values; one that the table does not have is new."""
    found: list[Line] = []
    for new in _axis_lines(item):
        same = [line for line in lines if _same(line.value, new.value)]
        found += same or [new]
    return found


def _axis_lines(item: Asked, prefix: str = "") -> list[Line]:
    return [
        Line(prefix + value.strip("'\""), _number(value), (f"{item.key}={value}",))
        for value in dict.fromkeys(item.values)
    ]


def _product(axes: Sequence[Sequence[Line]]) -> list[Line]:
    if len(axes) == 1:
        return list(axes[0])
    return [
        Line(
            ", ".join(line.label for line in lines),
            None,
            tuple(override for line in lines for override in line.overrides),
            lines[0].only,
        )
        for lines in itertools.product(*axes)
    ]


def _same(given: Any, asked: Any) -> bool:
    return given == asked or str(given) == str(asked)


def _number(text: str) -> Any:
    try:
        return float(text) if re.search(r"[.e]", text) else int(text)
    except ValueError:
        return text.strip("'\"")


def _written(value: Any) -> str:
    """A value of a YAML in Hydra's grammar of overrides."""
    if isinstance(value, str) and re.fullmatch(r"[\w./:%+-]+", value):
        return value
    return json.dumps(value)
