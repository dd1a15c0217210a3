"""A template, its style, scripts and data as one file that needs no other."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any


def render(
    template: str,
    scripts: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
    **context: Any,
) -> str:
    """Fill a template; no script runs in the page but ours, whatever the data holds.

    Args:
        template: name of a file of this package.
        scripts: the same; they become one.
        data: what they read, as the JSON of the element ``#data``.
        **context: names in the template.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("sparsebench.sweep.html", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    script = "\n".join(_asset(name) for name in scripts)
    text: str = environment.get_template(template).render(
        style=_asset("report.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=script_json(data),
        **context,
    )
    return text.encode(errors="replace").decode()  # file names may hold what is no text


def _asset(name: str) -> str:
    return (files("sparsebench.sweep.html") / name).read_text(encoding="utf-8")


def script_json(value: Mapping[str, Any] | None) -> str:
    """JSON that can stand in a ``<script>`` element: nothing in it ends the element."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def data_url(kind: str, text: str) -> str:
    """A file as an address that needs no file."""
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}"
