"""Docstrings as Markdown: the few marks of reStructuredText that the code uses are turned."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

#: ``:func:`sparsebench.sparsity.hebbian.hebbian``` and its kin.
_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):`~?([\w.]+)`")
_LITERAL = re.compile(r"::$", re.MULTILINE)


def markdown(text: str) -> str:
    """The text with links for roles, where the reference has the object, and ``:`` for ``::``."""
    return _LITERAL.sub(":", _ROLE.sub(_link, text))


def sentence(text: str) -> str:
    """The first line, with roles as code."""
    return _ROLE.sub(lambda role: f"`{role[1].rpartition('.')[2]}`", text).partition("\n")[0]


def _link(role: re.Match[str]) -> str:
    path = role[1]
    shown = f"<code>{path.rpartition('.')[2]}</code>"
    return f'<autoref identifier="{path}" optional>{shown}</autoref>'


class Roles(Extension):
    """Turns each docstring once it is loaded."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Turn the docstring of a module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
