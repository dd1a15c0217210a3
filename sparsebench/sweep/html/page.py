"""The report of a table: what the template needs, and the data behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparsebench.sweep.html.data import Budget, page_data
from sparsebench.sweep.html.render import data_url, render
from sparsebench.sweep.kinds import KIND_HEAD, KIND_SOURCE
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
    return render(
        "report.html.jinja",
        ("chart.js", "report.js"),
        data,
        shown=shown,
        scale=results.grid.spec.scale,
        claims=[_claim(line) for line in shown.claims],
        claim_head=CLAIM_HEAD,
        kind_head=KIND_HEAD,
        kind_source=KIND_SOURCE,
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
