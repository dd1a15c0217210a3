"""The page of all config keys and of the options of each group."""

from __future__ import annotations

import inspect
from dataclasses import Field, fields
from typing import Any

import pruners
from marks import may_be, plain, row, usual, wanted, yaml

from sparsebench.config import schema
from sparsebench.config.paths import config_files, config_folder
from sparsebench.config.rules import allowed, keys
from sparsebench.config.schema import IGNORED, Config
from sparsebench.sparsity import spec

_DIALS = "| key | default | may be | what |\n| --- | --- | --- | --- |\n"


def page() -> str:
    """The page."""
    text = (
        "# Config keys\n\nEvery key, its default and what it may be: `sparsebench key=value`. What "
        "is wrong is refused in one line before anything is built. Keys marked * can't change a "
        "result, and are no part of a run's identity. A key at its default is left out of the "
        "identity too.\n\n## Top level\n\n" + _DIALS
    )
    groups = _groups()
    single = [f for f in fields(Config) if f.name not in groups and f.name != "table"]
    text += "".join(_row(field, "") for field in single)
    for name, kind in groups.items():
        about = (inspect.getdoc(kind) or "").splitlines()[0]
        text += f"\n## {name}\n\n{about}\n\n" + _DIALS
        text += "".join(_row(field, f"{name}.") for field in fields(kind))
        text += _options(name)
        if name == "method":
            text += _bases()
    return text


def _bases() -> str:
    """Dials of methods that are made from another base than those that train."""
    text = ""
    for base in schema.BASES:
        if base != "composed":
            kind = pruners.spec_of(base)
            about = (inspect.getdoc(kind) or "").splitlines()[0]
            text += f"\n## method ({base})\n\n{about}\n\n" + _DIALS
            for dial in fields(kind):
                said = (f"`method.{dial.name}`", f"`{yaml(usual(dial))}`", may_be(dial))
                text += row((*said, dial.metadata.get("doc", "")))
    return text


def _groups() -> dict[str, type]:
    """The dataclass behind each group of keys, as the schema's own checks see it."""
    names = dict.fromkeys(key.partition(".")[0] for key in keys() if "." in key)
    kinds = {**vars(schema), **vars(spec)}
    found = {}
    for name in names:
        title = name.capitalize()
        found[name] = kinds.get(f"{title}Config") or kinds[f"{title}Spec"]
    return found


def _row(field: Field[Any], prefix: str) -> str:
    key = f"{prefix}{field.name}"
    default = field.default_factory() if callable(field.default_factory) else field.default
    star = " *" if key in IGNORED or prefix.rstrip(".") in IGNORED else ""
    doc = field.metadata.get("doc", "")
    return row((f"`{key}`{star}", f"`{yaml(default)}`", wanted(allowed(key)), doc))


def _options(group: str) -> str:
    """The options of a Hydra group, with the first line of each file."""
    names = config_files(group)
    if not names or group == "method":
        return "\n[All methods](methods/index.md).\n" if names else ""
    text = f"\n`{group}=` one of\n\n"
    for name in names:
        lines = (config_folder() / group / f"{name}.yaml").read_text().splitlines()
        about = lines[0].lstrip("# ") if lines[0].startswith("# ") else ""
        text += f"- `{name}`" + (f": {plain(about)}\n" if about else "\n")
    return text
