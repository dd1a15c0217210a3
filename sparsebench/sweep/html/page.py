"""The page: template, style, scripts and data in one file."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from sparsebench.sweep.html.data import Budget, page_data
from sparsebench.sweep.results import Results
from sparsebench.sweep.sheet import CLAIM_HEAD, Sheet

#: Signs beside a verdict, for those to whom its colour says nothing.
SIGNS = {"supported": "✓", "refuted": "✗", "inconclusive": "≈"}


def report_html(
    results: Results, shown: Sheet, picture_svg: str | None, budget: Budget | None = None
) -> str:
    """The report of a table; the same results give the same text.

    Args:
        results: the table with its runs, whose folders are read for configs and curves.
        shown: the table as laid out for all formats.
        picture_svg: the table's picture; None if it has none.
        budget: how much of the runs goes into the page.
    """
    data = page_data(results, budget)
    kept = sum("detail" in run for run in data["runs"])
    return _page(
        "report.html.jinja",
        ("chart.js", "report.js"),
        data,
        shown=shown,
        scale=results.grid.spec.scale,
        claims=[_claim(line) for line in shown.claims],
        claim_head=CLAIM_HEAD,
        picture=picture_svg and data_url("image/svg+xml", picture_svg),
        made=[line.partition(": ")[::2] for line in shown.made],
        missing=[(o.run.identity, o.run.label, o.status, o.error) for o in results.unfinished],
        counts={"runs": len(data["runs"]), "kept": kept},
        rows=len(data["rows"]),
    )


def _claim(line: Sequence[str]) -> dict[str, Any]:
    """A claim with its verdict apart from what else is said of it."""
    claim, said, *rest = line
    verdict, _, note = said.partition(" (")
    return {
        "claim": claim,
        "verdict": verdict,
        "note": note.removesuffix(")"),
        "sign": SIGNS.get(verdict, "–"),
        "kind": verdict.replace(" ", "-"),
        "rest": rest,
    }


def _page(template: str, scripts: Sequence[str], data: Any, **context: Any) -> str:
    """Fill a template; no script runs in the page but ours, whatever the data holds."""
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
