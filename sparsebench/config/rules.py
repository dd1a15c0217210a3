"""What a key may be: its field in the schema, and the words for it."""

from __future__ import annotations

import types
from dataclasses import Field, fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from sparsebench.config.schema import Config
from sparsebench.errors import nearest
from sparsebench.sparsity.fields import words
from sparsebench.sparsity.spec import MethodSpec

_PLAIN = {
    bool: "true or false is needed",
    int: "a whole number is needed",
    float: "a number is needed",
    str: "a text is needed",
    list: "a list is needed, such as [a,b]",
    dict: "keys and values are needed, such as {a:1}",
}


def keys(kind: type = Config, prefix: str = "") -> list[str]:
    """All keys of the schema, and the names of groups."""
    found = []
    for spec in fields(kind):
        found.append(f"{prefix}{spec.name}")
        if group := _group(kind, spec):
            found += keys(group, f"{prefix}{spec.name}.")
    return found


def nearest_key(key: str) -> str | None:
    """A key that differs in its last part only is nearer than one of another group."""
    group, _, name = key.rpartition(".")
    siblings = [k for k in keys() if k.rpartition(".")[0] == group]
    found = nearest(name, [k.rpartition(".")[2] for k in siblings])
    return f"{group}.{found}".lstrip(".") if found else nearest(key, keys())


def allowed(key: str) -> str:
    """What a key of the schema may be, in words."""
    kind: type = Config
    parts = key.partition("[")[0].split(".")
    for depth, part in enumerate(parts):
        spec = next((s for s in fields(kind) if s.name == part), None)
        if spec is None:
            return "another kind of value is needed"
        group = _group(kind, spec)
        if group is None:
            inside = "[" in key or depth + 1 < len(parts)
            return words(spec.metadata) or _PLAIN[_plain(kind, spec, inside)]
        kind = group
    return f"it is a group; its keys are {', '.join(s.name for s in fields(kind))}"


def group_of(kind: str) -> str:
    """The group whose schema is the dataclass of this name."""
    groups = {g.__name__: spec.name for spec in fields(Config) if (g := _group(Config, spec))}
    return groups.get(kind, kind)


def _group(kind: type, spec: Field[Any]) -> type | None:
    """The dataclass behind a key, if it is a group; ``method`` is one of composed methods."""
    if kind is Config and spec.name == "method":
        return MethodSpec
    hint = get_type_hints(kind)[spec.name]
    return hint if is_dataclass(hint) and isinstance(hint, type) else None


def _plain(kind: type, spec: Field[Any], inside: bool) -> type:
    """The Python type of a field without its ``| None``; with ``inside``, of its items."""
    hint = get_type_hints(kind)[spec.name]
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(h for h in get_args(hint) if h is not type(None))
    if inside and get_args(hint):
        hint = get_args(hint)[-1]
    found = get_origin(hint) or hint
    return found if found in _PLAIN else str
