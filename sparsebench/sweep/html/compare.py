"""Two tables side by side as one page: what changed, and whether by more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparsebench.sweep.differences import LEVEL, Difference, VerdictChange
from sparsebench.sweep.html.render import render

#: Groups of differences, in the order of the page.
GROUPS = (
    ("significant", "By more than chance"),
    ("chance", "Within what chance may do"),
    ("exact", "Counted exactly"),
    ("few", "Too few seeds for a test"),
    ("alone", "In one table only"),
)


def compare_html(
    old: str,
    new: str,
    figures: int,
    found: Sequence[Difference],
    verdicts: Sequence[VerdictChange] = (),
) -> str:
    """A page of what changed between two tables; the same differences give the same text.

    Args:
        old: name of the first table, such as its folder.
        new: name of the second.
        figures: how many were compared.
        found: those that differ.
        verdicts: of the claims whose verdict differs.
    """
    reach = _reach(found)
    groups = [
        (name, title, [_line(one, reach) for one in found if _group(one) == name])
        for name, title in GROUPS
    ]
    return render(
        "compare.html.jinja",
        old=old,
        new=new,
        figures=figures,
        changed=len(found),
        significant=sum(bool(one.significant) for one in found),
        tested=sum(one.p is not None for one in found),
        percent=f"{100 * LEVEL:g}",
        groups=[group for group in groups if group[2]],
        verdicts=verdicts,
    )


def _group(one: Difference) -> str:
    if one.status != "changed":
        return "alone"
    if one.p is not None:
        return "significant" if one.significant else "chance"
    return "exact" if one.test == "exact" else "few"


def _reach(found: Sequence[Difference]) -> dict[str, float]:
    """By metric how far its differences and their intervals are from zero."""
    reach: dict[str, float] = {}
    for one in found:
        ends = (one.difference, one.low, one.high)
        far = max((abs(end) for end in ends if end is not None), default=0.0)
        reach[one.metric] = max(reach.get(one.metric, 0.0), far)
    return reach


def _line(one: Difference, reach: dict[str, float]) -> dict[str, Any]:
    """A difference as text, and its interval as percent of the width it is drawn in."""
    line: dict[str, Any] = {
        "row": one.row,
        "column": one.column,
        "metric": one.metric,
        "old": f"{number(one.old)} ({one.old_n})" if one.old_n else "–",
        "new": f"{number(one.new)} ({one.new_n})" if one.new_n else "–",
        "difference": number(one.difference, "+"),
        "p": "" if one.p_holm is None else f"{one.p_holm:.2g}",
        "test": one.test or one.status,
        "bar": None,
    }
    far = reach[one.metric]
    if one.difference is not None and far:
        ends = [one.low, one.difference, one.high]
        low, point, high = (50 + 48 * (one.difference if e is None else e) / far for e in ends)
        line["bar"] = {"left": f"{low:.1f}", "width": f"{high - low:.1f}", "point": f"{point:.1f}"}
        line["interval"] = "" if one.low is None else f"[{one.low:+.4g}, {one.high:+.4g}]"
    return line


def number(value: float | None, sign: str = "") -> str:
    """A figure with four digits, whole ones in full."""
    if value is None:
        return "–"
    return f"{value:{sign},.0f}" if float(value).is_integer() else f"{value:{sign}.4g}"
