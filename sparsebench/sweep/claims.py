"""What the seeds say about each claim of a table: supported, refuted, or not decided by them.

For each seed that all cells of a claim have finished, D is the sum of its terms. A claim says
that the mean of D lies between two bounds, one of which may be infinite. A t-test over seeds is
made at each bound, two-sided, since data may speak for or against; Holm's correction covers all
claims of the table that are tested. Equivalence takes a test at both bounds (TOST: Schuirmann,
J. Pharmacokin. Biopharm. 15, 1987).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sparsebench.files import write_json
from sparsebench.sweep.results import Entry, Results
from sparsebench.sweep.spec import Claim, Metric, Term
from sparsebench.sweep.statistics import LEAST, Student, estimate, holm, seeds_needed, student

#: Chance that a table has a wrong verdict at all, where none of its claims has a real effect.
LEVEL = 0.05

#: Digits of a figure that mean something; what comes behind is rounding, and would decide a
#: claim whose D lies on its bound.
DIGITS = 12


@dataclass(frozen=True)
class Verdict:
    """A claim and what became of it.

    Attributes:
        claim: of the table, with its metric named.
        scale: of the table, without which a verdict says little.
        verdict: ``supported``, ``refuted``, ``inconclusive``, ``not decided`` (too few seeds) or
            ``not run`` (a cell is missing).
        difference: mean of D, in the unit the table shows.
        low: lower end of the 95 % t-interval of D by itself, without Holm's correction.
        high: upper end.
        n: seeds that all cells of the claim have.
        p: two-sided p-value; None where nothing was tested.
        p_holm: the same, corrected for the number of claims.
        seeds_needed: how many would decide it with a chance of 80 %, if mean and spread of D
            stay as seen; None where it is decided, or where no number of use would.
        note: what else to know, in a few words.
    """

    claim: Claim
    scale: str
    verdict: str
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    p: float | None = None
    p_holm: float | None = None
    seeds_needed: int | None = None
    note: str = ""


def decide(results: Results) -> list[Verdict]:
    """The verdict of each claim of a table, in its order.

    Args:
        results: the figures of the runs.
    """
    spec = results.grid.spec
    verdicts: list[Verdict] = []
    tested: dict[int, Student] = {}
    for claim in spec.claims:
        verdict, test = _measured(results, claim)
        if test:
            tested[len(verdicts)] = test
        verdicts.append(verdict)
    corrected = holm([_p_value(spec.claims[i], test) for i, test in tested.items()])
    for (i, test), p_holm in zip(tested.items(), corrected, strict=True):
        verdicts[i] = _judged(verdicts[i], test, p_holm, len(tested))
    return verdicts


def write_claims(verdicts: Sequence[Verdict], path: Path) -> None:
    """Write ``claims.json``: a list of claims with their verdicts.

    Args:
        verdicts: of one table.
        path: of the file; its folder exists.
    """
    write_json(path, [_as_dict(verdict) for verdict in verdicts])


def _as_dict(verdict: Verdict) -> dict[str, Any]:
    claim = verdict.claim
    low, high = verdict.low, verdict.high
    terms = [asdict(term) for term in claim.terms]
    return {
        "id": claim.id,
        "claim": claim.claim,
        "source": claim.source,
        "method": claim.method,
        "metric": claim.metric,
        "relation": claim.relation,
        "by": claim.by,
        "cells": terms,
        "scale": verdict.scale,
        "verdict": verdict.verdict,
        "difference": verdict.difference,
        "interval": None if low is None or high is None else [low, high],
        "n": verdict.n,
        "p": verdict.p,
        "p_holm": verdict.p_holm,
        "seeds_needed": verdict.seeds_needed,
        "note": verdict.note,
    }


def _measured(results: Results, claim: Claim) -> tuple[Verdict, Student | None]:
    """What the runs say of a claim, and what is to be tested if they are enough."""
    spec = results.grid.spec
    metric = spec.find_metric(claim.metric)
    assert metric is not None  # spec_check has seen to it
    verdict = Verdict(replace(claim, metric=metric.key), spec.scale, "not run")
    entries = [_entry(results, term) for term in claim.terms]
    found = [
        _constant(results, term, metric) if term.published else _values(entry, metric)
        for term, entry in zip(claim.terms, entries, strict=True)
    ]
    for term, entry, values in zip(claim.terms, entries, found, strict=True):
        if not values:
            cell = ", ".join(str(name) for name in (term.row, term.column) if name != "")
            note = f"{cell}: {'no run has this figure' if entry else 'not part of this sweep'}"
            return replace(verdict, note=note), None
    sums = _sums([term.weight * metric.factor for term in claim.terms], found)
    mean = estimate(sums)
    if mean is None:
        note = "the cells have no seed in common"
        return replace(verdict, verdict="not decided", note=note), None
    verdict = replace(verdict, difference=mean.mean, n=mean.n)
    if metric.summary == "range" and all(len(set(values.values())) == 1 for values in found):
        low, high = _bounds(claim)
        held = "supported" if low < mean.mean < high else "refuted"
        return replace(verdict, verdict=held, note="exact: the same for every seed"), None
    if mean.n < LEAST:
        note = f"{mean.n} of the {LEAST} paired seeds needed"
        return replace(verdict, verdict="not decided", note=note), None
    return replace(verdict, low=mean.low, high=mean.high), student(sums)


def _entry(results: Results, term: Term) -> Entry | None:
    place = results.grid.place(term.row, term.column)
    return results.entries.get(place) if place else None


def _values(entry: Entry | None, metric: Metric) -> dict[int, float]:
    values = entry.values(metric) if entry else {}
    return {seed: value for seed, value in values.items() if math.isfinite(value)}


def _constant(results: Results, term: Term, metric: Metric) -> dict[int, float]:
    """The published figure of a cell in the unit of the runs, the same for every seed."""
    place = results.grid.place(term.row, term.column)
    figure = results.published.get((*place, metric.key)) if place else None
    return dict.fromkeys(results.grid.seeds, figure.value / metric.factor) if figure else {}


def _sums(weights: Sequence[float], found: Sequence[Mapping[int, float]]) -> list[float]:
    """D by seed, over the seeds that all terms have."""
    common = set.intersection(*(set(values) for values in found))
    parts = [[w * v[s] for w, v in zip(weights, found, strict=True)] for s in sorted(common)]
    largest = max((abs(part) for row in parts for part in row), default=0.0)
    digits = DIGITS - 1 - math.floor(math.log10(largest)) if largest else 0
    return [round(math.fsum(row), digits) for row in parts]


def _bounds(claim: Claim) -> tuple[float, float]:
    """Between what the mean of D lies if the claim holds."""
    return {
        "above": (claim.by, math.inf),
        "below": (-math.inf, -claim.by),
        "as_good": (-claim.by, math.inf),
        "same": (-claim.by, claim.by),
    }[claim.relation]


def _sides(claim: Claim, test: Student) -> tuple[float, float]:
    """One-sided p-values for the claim and against it."""
    low, high = _bounds(claim)
    supported = max(test.p_above(low), test.p_below(high))
    refuted = min(test.p_below(low), test.p_above(high))
    return supported, refuted


def _p_value(claim: Claim, test: Student) -> float:
    return min(1.0, 2 * min(_sides(claim, test)))


def _judged(verdict: Verdict, test: Student, p_holm: float, tests: int) -> Verdict:
    supported, refuted = _sides(verdict.claim, test)
    note = "" if test.error else "all seeds have the same difference"
    verdict = replace(verdict, p=_p_value(verdict.claim, test), p_holm=p_holm, note=note)
    if p_holm < LEVEL:
        return replace(verdict, verdict="supported" if supported < refuted else "refuted")
    needed = _needed(verdict, test, tests, supporting=supported <= refuted)
    return replace(verdict, verdict="inconclusive", seeds_needed=needed)


def _needed(verdict: Verdict, test: Student, tests: int, *, supporting: bool) -> int | None:
    """Seeds that would pass Holm's hardest step on the side that the data lean to."""
    if not test.error:
        return None
    low, high = _bounds(verdict.claim)
    deviation = test.error * math.sqrt(verdict.n)
    inside = [(test.mean - low) / deviation, (high - test.mean) / deviation]
    effects = inside if supporting else [-min(inside)]
    return seeds_needed(effects, LEVEL / tests)
