"""Texts of the code as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import MISSING
from typing import Any

from sparsebench.config.paths import config_folder
from sparsebench.sparsity.fields import words

#: Of a table of dials.
HEAD = "| dial | here | usual default | may be | what |\n" + "| --- " * 5 + "|\n"
_BAR = re.compile(r"(``[^`]*``|`[^`]*`)|\|")
_TYPES = {"bool": "true or false", "dict[str, list[str]]": "lists of texts, by name"}
_TAG = re.compile(r"(``[^`]*``|`[^`]*`)|<")


def plain(text: str) -> str:
    """A text whose ``<`` is no HTML; in code it stands as it is."""
    return _TAG.sub(lambda tag: tag[1] or "&lt;", text)


def row(cells: Iterable[Any]) -> str:
    """A row of a table; a bar in a cell is escaped, but in code it stands as it is."""
    escaped = (_BAR.sub(lambda bar: bar[1] or r"\|", plain(str(cell))) for cell in cells)
    return "| " + " | ".join(escaped) + " |\n"


def wanted(sentence: str) -> str:
    """What is wanted, from the sentence that says it is needed."""
    return sentence.replace(" is needed", "").replace(" are needed", "")


def yaml(value: Any) -> str:
    """A value as one would write it in a config."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if value != "" else '""'


def about(name: str) -> str:
    """The first line of a method's YAML."""
    text = (config_folder() / "method" / f"{name}.yaml").read_text()
    return text.splitlines()[0].lstrip("# ")


def task_said(name: str) -> str | None:
    """The task that the first line of a method's YAML names."""
    said = re.search(r"\btask=(\w+)", about(name))
    return said[1] if said else None


def dial(key: str, value: Any, standard: Any, field: Any) -> str:
    """A row about a dial that stands elsewhere than usual."""
    what = field.metadata.get("doc", "")
    return row((f"`{key}`", f"`{yaml(value)}`", f"`{yaml(standard)}`", may_be(field), what))


def usual(field: Any) -> Any:
    """The default of a dataclass's field."""
    return field.default if field.default is not MISSING else field.default_factory()


def may_be(field: Any) -> str:
    """What a field may be, in words."""
    if "names" in field.metadata:
        return "a part, by name or import path"
    return wanted(words(field.metadata)) or _TYPES.get(str(field.type), str(field.type))
