"""What a table is: data in ``configs/table/*.yaml``, typed and checked here.

Nothing here reads results or starts runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from sparsebench.errors import UserError, bad_value, nearest

BETTER = ("max", "min")
SUMMARIES = ("interval", "range")


@dataclass
class Choice:
    """One row or one column.

    Attributes:
        value: what the axis's key is set to; part of every override of this row.
        label: how it is called in the table; the value itself if null.
        overrides: further overrides that belong to it.
    """

    value: Any = None
    label: str | None = None
    overrides: list[str] = field(default_factory=list)


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
            that are exact and only have a range if seeds differ.
    """

    key: str = "test/accuracy"
    label: str | None = None
    format: str = ".4g"
    factor: float = 1.0
    better: str | None = None
    summary: str = "interval"


@dataclass
class Picture:
    """What the figure shows: one line a ``series``, over ``x``; both are keys of an axis."""

    x: str = ""
    y: str = ""
    series: str = ""


@dataclass
class TableSpec:
    """A table.

    Attributes:
        name: part of the folder ``results/<name>/<scale>``.
        title: stands above the table.
        scale: how near to a published set-up, such as ``quick`` or ``paper``.
        about: what to know when reading it, in a sentence or two.
        command: the command that makes it.
        rows: the rows.
        columns: the columns.
        overrides: what all cells have in common.
        seeds: how many, from 0 on, or a list of them.
        metric: the figures shown; the first is the one that decides.
        picture: the figure; null for none.
    """

    name: str = ""
    title: str = ""
    scale: str = ""
    about: str = ""
    command: str = ""
    rows: Axis = field(default_factory=Axis)
    columns: Axis = field(default_factory=Axis)
    overrides: list[str] = field(default_factory=list)
    seeds: Any = 1
    metric: list[Metric] = field(default_factory=lambda: [Metric()])
    picture: Picture | None = None


def read_table(node: DictConfig, file: str) -> TableSpec:
    """The table that a config node describes.

    Args:
        node: content of the YAML; a row or column may be a bare value.
        file: its name, for messages.

    Raises:
        UserError: one line with file, field, what was given and what is allowed.
    """
    spec = _read(TableSpec, OmegaConf.to_container(node, resolve=True), f"{file}: ")
    assert isinstance(spec, TableSpec)
    _check(spec, file)
    return spec


def seeds_of(spec: TableSpec, file: str) -> list[int]:
    """The seeds as a list."""
    given = list(range(spec.seeds)) if type(spec.seeds) is int else spec.seeds
    whole = isinstance(given, list) and all(type(s) is int and s >= 0 for s in given)
    if not whole or not given or len(set(given)) != len(given):
        raise bad_value(
            f"{file}: seeds", spec.seeds, "a number of seeds, or a list of different ones"
        )
    return given


def _read(kind: Any, given: Any, where: str) -> Any:
    """A value of a YAML as a field's type says it is, dataclasses and lists of them too."""
    if kind is Any:
        return given
    if isinstance(kind, UnionType):
        return None if given is None else _read(get_args(kind)[0], given, where)
    if get_origin(kind) is list:
        if not isinstance(given, list):
            raise bad_value(where, given, "a list is needed")
        return [_read(get_args(kind)[0], item, f"{where}.{i}") for i, item in enumerate(given)]
    if is_dataclass(kind):
        return _read_fields(kind, given, where)
    wanted = (int, float) if kind is float else kind
    if not isinstance(given, wanted) or isinstance(given, bool):
        raise bad_value(where, given, "a number is needed" if kind is float else "text is needed")
    return given


def _read_fields(kind: Any, given: Any, where: str) -> Any:
    if kind is Choice and not isinstance(given, dict):
        return Choice(given)
    if not isinstance(given, dict):
        raise bad_value(where, given, "fields with values are needed")
    hints = get_type_hints(kind)
    at = where if where.endswith(": ") else f"{where}."
    for key in given:
        if key not in hints:
            near = nearest(str(key), hints)
            hint = f"; did you mean '{near}'?" if near else ""
            raise UserError(f"{at}{key}: there is no such field of {', '.join(hints)}{hint}")
    return kind(**{key: _read(hints[key], value, f"{at}{key}") for key, value in given.items()})


def _check(spec: TableSpec, file: str) -> None:
    for name in ("name", "title", "scale"):
        if not getattr(spec, name).strip():
            raise UserError(f"{file}: {name}: is missing")
    for name in ("name", "scale"):
        text = getattr(spec, name)
        if not all(c.isalnum() or c in "._-" for c in text) or text.startswith("."):
            raise bad_value(f"{file}: {name}", text, "a word of letters, digits, '_', '-' and '.'")
    seeds_of(spec, file)
    for name in ("rows", "columns"):
        _check_axis(getattr(spec, name), f"{file}: {name}")
    if spec.rows.key and spec.rows.key == spec.columns.key:
        raise bad_value(f"{file}: columns.key", spec.columns.key, "the rows have this key already")
    if not spec.metric:
        raise UserError(f"{file}: metric: at least one figure is needed")
    for i, metric in enumerate(spec.metric):
        _check_metric(metric, f"{file}: metric.{i}")
    if spec.picture:
        _check_picture(spec, spec.picture, f"{file}: picture")


def _check_axis(axis: Axis, where: str) -> None:
    if not axis.values:
        raise UserError(f"{where}.values: at least one is needed")
    if axis.key == "seed":
        raise bad_value(f"{where}.key", "seed", "seeds are replicates; their field is 'seeds'")
    labels: set[str] = set()
    for i, choice in enumerate(axis.values):
        if axis.key and choice.value is None:
            raise UserError(f"{where}.values.{i}.value: is missing (the axis is '{axis.key}')")
        if not axis.key and not choice.overrides:
            raise UserError(f"{where}.values.{i}.overrides: needed, since the axis has no key")
        choice.label = choice.label or str(choice.value)
        if choice.label in labels:
            raise bad_value(f"{where}.values.{i}.label", choice.label, "is there twice")
        labels.add(choice.label)


def _check_metric(metric: Metric, where: str) -> None:
    for name, allowed in (("better", (None, *BETTER)), ("summary", SUMMARIES)):
        if getattr(metric, name) not in allowed:
            words = [a for a in allowed if a]
            said = f"one of {', '.join(words)}"
            raise bad_value(f"{where}.{name}", getattr(metric, name), said, words)
    try:
        format(1.5, metric.format)
    except ValueError as error:
        said = f"a Python format of one number, such as .2f or ,.0f ({error})"
        raise bad_value(f"{where}.format", metric.format, said) from None


def _check_picture(spec: TableSpec, picture: Picture, where: str) -> None:
    axes = [spec.rows.key, spec.columns.key]
    metrics = [metric.key for metric in spec.metric]
    if picture.x not in axes or not picture.x:
        raise bad_value(f"{where}.x", picture.x, f"the key of an axis ({', '.join(axes)})", axes)
    if picture.series not in axes or picture.series == picture.x:
        raise bad_value(f"{where}.series", picture.series, "the key of the other axis", axes)
    if picture.y not in metrics:
        raise bad_value(f"{where}.y", picture.y, f"one of {', '.join(metrics)}", metrics)
