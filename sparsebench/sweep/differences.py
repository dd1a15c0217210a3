"""What changed between two tables, and whether by more than chance."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sparsebench.errors import UserError, bad_value
from sparsebench.sweep.statistics import LEAST, Student, estimate, holm, student, welch

#: Row, column and metric of a figure.
Place = tuple[str, str, str]
#: A figure by seed, for each place.
Figures = Mapping[Place, Mapping[int, float]]

LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """A figure that is not the same in two tables.

    Attributes:
        row: label.
        column: label.
        metric: key.
        status: ``changed``, ``new`` or ``gone``.
        old: mean over seeds, in the unit of the runs.
        new: the same in the other table.
        old_n: seeds behind the old mean.
        new_n: seeds behind the new mean.
        test: ``paired`` (both have the same seeds), ``welch`` (they have not; seeds in common
            only make it more careful), ``exact`` (counted, no chance in it), ``too few seeds``,
            or empty where there is nothing to compare with.
        difference: new - old.
        low: lower end of its 95 % interval, without Holm's correction; None without a test.
        high: upper end.
        p: two-sided p-value.
        p_holm: the same, corrected for the number of figures tested.
        significant: whether ``p_holm`` is below 5 %; None without a test.
    """

    row: str
    column: str
    metric: str
    status: str
    old: float | None = None
    new: float | None = None
    old_n: int = 0
    new_n: int = 0
    test: str = ""
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    significant: bool | None = None


@dataclass(frozen=True)
class VerdictChange:
    """A claim whose verdict is another; None where a table does not have the claim."""

    id: str
    claim: str
    old: str | None
    new: str | None


def differences(old: Figures, new: Figures) -> list[Difference]:
    """The figures that are not the same, with their tests corrected for their number.

    Figures that are equal seed by seed count as not tested: nothing was drawn anew.

    Args:
        old: figures by seed; a place without seeds counts as not there.
        new: the same of the other table.
    """
    found = []
    for place in dict.fromkeys((*old, *new)):
        before, after = old.get(place, {}), new.get(place, {})
        if before != after and (one := _difference(place, before, after)):
            found.append(one)
    tested = [i for i, one in enumerate(found) if one.p is not None]
    corrected = holm([p for one in found if (p := one.p) is not None])
    for i, p_holm in zip(tested, corrected, strict=True):
        found[i] = replace(found[i], p_holm=p_holm, significant=p_holm < LEVEL)
    return found


def verdict_changes(
    old: Iterable[Mapping[str, Any]], new: Iterable[Mapping[str, Any]]
) -> list[VerdictChange]:
    """The claims whose verdict changed, and those that only one table has.

    Args:
        old: content of a ``claims.json``.
        new: the same of the other table.
    """
    before, after = ({str(c["id"]): c for c in claims} for claims in (old, new))
    changes = []
    for name in dict.fromkeys((*before, *after)):
        first, second = (side.get(name, {}).get("verdict") for side in (before, after))
        if first != second:
            text = str({**before.get(name, {}), **after.get(name, {})}.get("claim", ""))
            changes.append(VerdictChange(name, text, first, second))
    return changes


def read_figures(text: str, name: str = "table.csv") -> dict[Place, dict[int, float]]:
    """The figures of a ``table.csv``; those without a seed are left out.

    Args:
        text: content of the file.
        name: of the file, for messages.

    Raises:
        UserError: it is none of ours, or damaged.
    """
    reader = csv.DictReader(io.StringIO(text))
    missing = {"row", "column", "metric", "by_seed"} - set(reader.fieldnames or ())
    if missing:
        columns = ", ".join(sorted(missing))
        raise UserError(f"{name}: no table of sparsebench: it has no column {columns}")
    found: dict[Place, dict[int, float]] = {}
    for line in reader:
        if None in line:
            raise UserError(f"{name}, line {reader.line_num}: too many fields")
        try:
            pairs = [word.split(":") for word in line["by_seed"].split()]
            values = {int(seed): float(value) for seed, value in pairs}
        except (ValueError, AttributeError):  # a line that was cut has no such field
            said = "pairs of seed and figure such as 0:0.95 are needed"
            raise bad_value(
                f"{name}, line {reader.line_num}: by_seed", line["by_seed"] or "", said
            ) from None
        finite = {seed: value for seed, value in values.items() if math.isfinite(value)}
        if finite:
            found[line["row"], line["column"], line["metric"]] = finite
    return found


def _difference(
    place: Place, old: Mapping[int, float], new: Mapping[int, float]
) -> Difference | None:
    """The difference of a figure that is not the same seed by seed; None if it is in effect."""
    before, after = estimate(old.values()), estimate(new.values())
    if before is None or after is None:
        if after:
            return Difference(*place, "new", new=after.mean, new_n=after.n)
        return Difference(*place, "gone", old=before.mean, old_n=before.n) if before else None
    found = Difference(
        *place, "changed", before.mean, after.mean, before.n, after.n, "too few seeds"
    )
    found = replace(found, difference=after.mean - before.mean)
    if min(before.n, after.n) > 1 and len({*old.values()}) == len({*new.values()}) == 1:
        return replace(found, test="exact") if found.difference else None
    if min(before.n, after.n) < LEAST:
        return found
    if old.keys() == new.keys():
        return _tested(found, "paired", student([new[seed] - old[seed] for seed in sorted(old)]))
    return _tested(found, "welch", welch(list(new.values()), list(old.values())))


def _tested(found: Difference, name: str, test: Student) -> Difference:
    low, high = test.interval()
    p = min(1.0, 2 * min(test.p_above(0.0), test.p_below(0.0)))
    return replace(found, test=name, difference=test.mean, low=low, high=high, p=p)
