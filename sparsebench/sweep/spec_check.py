"""What a table may say; everything is refused here before any run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from sparsebench.errors import UserError, bad_value
from sparsebench.sweep.spec import (
    BETTER,
    ORDERS,
    RELATIONS,
    SUMMARIES,
    Axis,
    Claim,
    Metric,
    Picture,
    Published,
    TableSpec,
)
from sparsebench.sweep.yaml_reader import At, Scale, read_scales


def read_table(
    node: DictConfig, file: str, path: Path | None = None, last: Collection[str] = ()
) -> TableSpec:
    """The table that a config node describes, at the scale it asks for.

    Args:
        node: content of the YAML with what the command line changed; a row or column may be
            a bare value.
        file: its name, for messages.
        path: where it is, to find the line of a mistake.
        last: fields that the command line has set, which no scale changes.

    Raises:
        UserError: one line with file, line, field, what was given and what is allowed.
    """
    given = OmegaConf.to_container(node, resolve=True)
    assert isinstance(given, dict)
    at = At(file, path)
    scales = read_scales(given, at, last)
    for scale in scales.values():
        _check(scale.spec, scale.at)
    _check_only(scales)
    _check_places_of_published(scales)
    for scale in scales.values():
        _check_claims(scale, scales)
    name = str(given.get("scale", next(iter(scales))))
    if name not in scales:
        raise bad_value("table.scale", name, f"one of {', '.join(scales)} is needed", scales)
    spec = scales[name].spec
    if spec.name != Path(file).stem:
        raise (at / "name").refuse(spec.name, f"the file's name is needed, {Path(file).stem}")
    here = [c for c in spec.claims if all(spec.has_cell(t.row, t.column) for t in c.terms)]
    return replace(spec, claims=here)


def seeds_of(spec: TableSpec, at: object = "table") -> list[int]:
    """The seeds as a list."""
    given = list(range(spec.seeds)) if type(spec.seeds) is int else spec.seeds
    whole = isinstance(given, list) and all(type(s) is int and s >= 0 for s in given)
    if not whole or not given or len(set(given)) != len(given):
        raise bad_value(
            f"{at}.seeds" if at == "table" else str(at),
            spec.seeds,
            "a number of seeds, or a list of different ones",
        )
    return given


def _check(spec: TableSpec, place: Callable[[str], At]) -> None:
    for name in ("name", "title", "scale"):
        if not getattr(spec, name).strip():
            raise place(name).missing()
    for name in ("name", "scale"):
        text = getattr(spec, name)
        if not all(c.isalnum() or c in "._-" for c in text) or text.startswith("."):
            raise place(name).refuse(text, "a word of letters, digits, '_', '-' and '.'")
    if spec.scale != "paper" and not spec.setup.strip():
        said = "is missing: the title of a scale that is not 'paper' says what is trained"
        raise place("setup").missing(said)
    seeds_of(spec, place("seeds"))
    if spec.order not in ORDERS:
        raise place("order").refuse(spec.order, f"one of {', '.join(ORDERS)}", ORDERS)
    for name in ("rows", "columns"):
        _check_axis(getattr(spec, name), place(name))
    if spec.rows.key and spec.rows.key == spec.columns.key:
        key = place("columns") / "key"
        raise key.refuse(spec.columns.key, "the rows have this key already")
    if not spec.metric:
        raise place("metric").missing("at least one figure is needed")
    for i, metric in enumerate(spec.metric):
        _check_metric(metric, place("metric") / i)
        if metric.per is not None and not any(row.named(metric.per) for row in spec.rows.values):
            labels = [str(row.label) for row in spec.rows.values]
            at = place("metric") / i / "per"
            raise at.refuse(metric.per, f"one of the rows {', '.join(labels)}", labels)
    if spec.picture:
        _check_picture(spec, spec.picture, place("picture"))
    for i, group in enumerate(spec.published):
        _check_published(spec, group, place("published") / i)


def _check_axis(axis: Axis, at: At) -> None:
    if not axis.values:
        raise (at / "values").missing("at least one is needed")
    if axis.key == "seed":
        raise (at / "key").refuse("seed", "seeds are replicates; their field is 'seeds'")
    labels: set[str] = set()
    for i, choice in enumerate(axis.values):
        here = at / "values" / i
        if axis.key and choice.value is None:
            raise (here / "value").missing(f"is missing (the axis is '{axis.key}')")
        if not axis.key and not choice.overrides and choice.label != "":
            raise (here / "overrides").missing("needed, since the axis has no key")
        if choice.label is None:
            choice.label = str(choice.value)
        if choice.label in labels:
            raise (here / "label").refuse(choice.label, "is there twice")
        labels.add(choice.label)


def _check_only(scales: Mapping[str, Scale]) -> None:
    """What a row is ``only`` in are columns of some scale, and every row has a cell in some."""
    columns = [c for scale in scales.values() for c in scale.spec.columns.values]
    filled = {str(row.label) for scale in scales.values() for row, _ in scale.spec.cells()}
    for scale in scales.values():
        for i, row in enumerate(scale.spec.rows.values):
            at = scale.at("rows") / "values" / i / "only"
            for name in row.only or ():
                if not any(column.named(name) for column in columns):
                    labels = list(dict.fromkeys(str(column.label) for column in columns))
                    raise at.refuse(name, f"one of the columns {', '.join(labels)}", labels)
            if row.label not in filled:
                raise at.missing("no cell fills this row; leave 'only' out for all columns")


def _check_metric(metric: Metric, at: At) -> None:
    for name, allowed in (("better", (None, *BETTER)), ("summary", SUMMARIES)):
        if getattr(metric, name) not in allowed:
            words = [a for a in allowed if a]
            raise (at / name).refuse(getattr(metric, name), f"one of {', '.join(words)}", words)
    try:
        format(1.5, metric.format)
    except ValueError as error:
        said = f"a Python format of one number, such as .2f or ,.0f ({error})"
        raise (at / "format").refuse(metric.format, said) from None


def _check_picture(spec: TableSpec, picture: Picture, at: At) -> None:
    axes = [spec.rows.key or "row", spec.columns.key or "column"]
    keys = [metric.key for metric in spec.metric]
    if picture.x not in (*axes, *keys):
        said = f"the key of an axis ({', '.join(axes)}) or of a metric ({', '.join(keys)})"
        raise (at / "x").refuse(picture.x, said, [*axes, *keys])
    if picture.x in axes and (picture.series not in axes or picture.series == picture.x):
        raise (at / "series").refuse(picture.series, "the key of the other axis", axes)
    _check_key(spec, picture.y, at / "y")


def _check_key(spec: TableSpec, key: str, at: At) -> None:
    if spec.find_metric(key) is None:
        keys = [metric.key for metric in spec.metric]
        raise at.refuse(key, f"one of {', '.join(keys)}", keys)


def _check_published(spec: TableSpec, group: Published, at: At) -> None:
    if not group.source.strip():
        raise (at / "source").missing("is missing: a published figure without its source")
    if not group.values:
        raise (at / "values").missing()
    _check_key(spec, group.metric, at / "metric")
    for name, value in group.values.items():
        pair = value if isinstance(value, list) and len(value) == 2 else [value]
        if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in pair):
            said = "a number, or [mean, standard deviation]"
            raise (at / "values" / name).refuse(value, said)


def _check_places_of_published(scales: Mapping[str, Scale]) -> None:
    """A published figure belongs to a cell of at least one scale that has the figure."""
    for scale in scales.values():
        for i, group in enumerate(scale.spec.published):
            having = [s.spec for s in scales.values() if group in s.spec.published]
            for name in group.values:
                if not any(spec.has_cell(name, group.column) for spec in having):
                    at = scale.at("published") / i / "values" / name
                    said = f"there is no cell of row '{name}' and column '{group.column}'"
                    raise UserError(f"{at}: {said}")


def _check_claims(scale: Scale, scales: Mapping[str, Scale]) -> None:
    """A claim is whole, and its cells are those of at least one scale that has the claim."""
    names: set[str] = set()
    for i, claim in enumerate(scale.spec.claims):
        at = scale.at("claims") / i
        for name in ("id", "claim", "source"):
            if not getattr(claim, name).strip():
                raise (at / name).missing()
        if claim.id in names:
            raise (at / "id").refuse(claim.id, "is there twice")
        names.add(claim.id)
        if claim.relation not in RELATIONS:
            said = f"one of {', '.join(RELATIONS)}"
            raise (at / "relation").refuse(claim.relation, said, RELATIONS)
        if claim.by < 0 or (claim.relation in ("as_good", "same") and claim.by == 0):
            least = "at least 0" if claim.by < 0 else "more than 0: it is the margin"
            raise (at / "by").refuse(claim.by, f"{least} is needed")
        _check_key(scale.spec, claim.metric, at / "metric")
        _check_terms(claim, [s.spec for s in scales.values() if claim in s.spec.claims], at)


def _check_terms(claim: Claim, specs: Sequence[TableSpec], at: At) -> None:
    if not claim.terms:
        raise (at / "terms").missing("the claim is about no cell")
    for i, term in enumerate(claim.terms):
        if not any(spec.has_cell(term.row, term.column) for spec in specs):
            rows = [str(row.label) for spec in specs for row in spec.rows.values]
            said = f"there is no cell of row '{term.row}' and column '{term.column}'"
            raise (at / "terms" / i).refuse(f"{term.row}, {term.column}", said, rows)
        cell = term.row, term.column, claim.metric
        if term.published and not any(spec.has_published(*cell) for spec in specs):
            said = "there is no published figure of that cell and metric"
            raise (at / "terms" / i).refuse(f"{term.row}, {term.column}", said)
