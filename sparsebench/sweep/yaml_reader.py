"""Read a table's YAML into its types; every refusal names file, line and field."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from sparsebench.errors import UserError, bad_value, nearest
from sparsebench.sweep.spec import Choice, TableSpec


@dataclass(frozen=True)
class At:
    """A place in a table's YAML; as text, ``table/cifar.yaml:12: rows.values.3.label``.

    Attributes:
        name: of the file, for messages.
        path: where it is, if it is known; it is only read to find a line.
        keys: of the field, from the top.
        scale: the block of ``scales`` that the field stands in, if any.
    """

    name: str
    path: Path | None = None
    keys: tuple[str | int, ...] = ()
    scale: str | None = None

    def __truediv__(self, key: str | int) -> At:
        """A field or an item inside."""
        return replace(self, keys=(*self.keys, key))

    def __str__(self) -> str:
        """File, line and field."""
        within = () if self.scale is None else ("scales", self.scale)
        line = _line(self.path, (*within, *self.keys))
        at = f"{self.name}:{line}" if line else self.name
        return f"{at}: {'.'.join(map(str, self.keys))}" if self.keys else at

    @property
    def top(self) -> At:
        """The file."""
        return replace(self, keys=(), scale=None)

    def missing(self, why: str = "is missing") -> UserError:
        """A field that is needed."""
        return UserError(f"{self}: {why}")

    def refuse(self, given: object, allowed: str, names: Sequence[str] = ()) -> UserError:
        """A value that is not allowed."""
        return bad_value(str(self), given, allowed, names)


@dataclass(frozen=True)
class Scale:
    """A table at one scale, and where each of its fields stands."""

    spec: TableSpec
    places: dict[str, At]

    def at(self, name: str) -> At:
        """Place of a field, whether it is given or not."""
        return self.places.get(name) or next(iter(self.places.values())).top / name


def read_scales(given: Any, at: At, last: Collection[str] = ()) -> dict[str, Scale]:
    """All scales of a table.

    A field of a scale takes the place of the table's own, but for ``overrides``: those of the
    scale are added.

    Args:
        given: content of the YAML.
        at: the file.
        last: fields that no scale changes, since the command line has set them.
    """
    if not isinstance(given, dict):
        raise at.refuse(given, "fields with values are needed")
    own = {str(key): value for key, value in given.items() if key != "scales"}
    scales = given.get("scales")
    if not isinstance(scales, dict) or not scales:
        raise (at / "scales").refuse(scales, "names of scales with their fields are needed")
    found = {}
    for name, block in scales.items():
        if block is not None and not isinstance(block, dict):
            raise (at / "scales" / str(name)).refuse(block, "fields with values are needed")
        within = replace(at, scale=str(name))
        changes = {str(k): v for k, v in (block or {}).items() if k not in last}
        places = {**{k: at / k for k in own}, **{k: within / k for k in changes}}
        spec = _table({**own, **changes, "scale": str(name)}, at, places)
        if "overrides" in changes and "overrides" in own:
            common = read(list[str], own["overrides"], at / "overrides")
            spec = replace(spec, overrides=[*common, *spec.overrides])
        found[str(name)] = Scale(spec, places)
    return found


def _table(given: dict[Any, Any], at: At, places: dict[str, At]) -> TableSpec:
    for key in given:
        _known(TableSpec, key, places.get(key, at / key))
    hints = get_type_hints(TableSpec)
    values = {key: read(hints[key], value, places.get(key, at)) for key, value in given.items()}
    return _filled(TableSpec(**values))


def _filled(spec: TableSpec) -> TableSpec:
    """The table with its variables in place, in the overrides of all and of rows and columns."""

    def fill(overrides: list[str]) -> list[str]:
        for name, value in spec.variables.items():
            overrides = [text.replace(f"{{{name}}}", str(value)) for text in overrides]
        return overrides

    for choice in (*spec.rows.values, *spec.columns.values):
        choice.overrides = fill(choice.overrides)
    return replace(spec, overrides=fill(spec.overrides))


def read(kind: Any, given: Any, at: At) -> Any:
    """A value of a YAML as a type says it is, dataclasses, lists and dictionaries too.

    Raises:
        UserError: the value is of another type; one line with its place.
    """
    if kind is Any:
        return given
    if isinstance(kind, UnionType):
        return None if given is None else read(get_args(kind)[0], given, at)
    if get_origin(kind) is list:
        if not isinstance(given, list):
            raise at.refuse(given, "a list is needed")
        return [read(get_args(kind)[0], item, at / i) for i, item in enumerate(given)]
    if get_origin(kind) is dict:
        if not isinstance(given, dict):
            raise at.refuse(given, "names with values are needed")
        return {str(key): value for key, value in given.items()}
    if is_dataclass(kind):
        return _fields(kind, given, at)
    return _plain(kind, given, at)


def _plain(kind: type, given: Any, at: At) -> Any:
    wanted: Any = (int, float) if kind is float else kind
    if not isinstance(given, wanted) or (isinstance(given, bool) and kind is not bool):
        words = {float: "a number", int: "a whole number", bool: "true or false"}
        raise at.refuse(given, f"{words.get(kind, 'text')} is needed")
    return given


def _fields(kind: Any, given: Any, at: At) -> Any:
    if kind is Choice and not isinstance(given, dict):
        return Choice(given)
    if not isinstance(given, dict):
        raise at.refuse(given, "fields with values are needed")
    for key in given:
        _known(kind, str(key), at / str(key))
    hints = get_type_hints(kind)
    return kind(**{key: read(hints[key], value, at / str(key)) for key, value in given.items()})


def _known(kind: Any, key: str, at: At) -> None:
    names = [field.name for field in fields(kind)]
    if key not in names:
        near = nearest(key, names)
        hint = f"; did you mean '{near}'?" if near else ""
        raise UserError(f"{at}: there is no such field of {', '.join(names)}{hint}")


def _line(path: Path | None, keys: tuple[str | int, ...]) -> int | None:
    """Line of a field, or of the innermost thing around it that the file has."""
    import yaml

    try:
        node = yaml.compose(path.read_text()) if path else None
    except (OSError, yaml.YAMLError):
        node = None
    if node is None:
        return None
    line: int = node.start_mark.line
    for key in keys:
        inner = _inner(node, key)
        if inner is None:
            break
        line, node = inner
    return line + 1


def _inner(node: Any, key: str | int) -> tuple[int, Any] | None:
    """Line and node of a key of a mapping, or an item of a list."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if name.value == str(key):
                return name.start_mark.line, value
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        return node.value[key].start_mark.line, node.value[key]
    return None
