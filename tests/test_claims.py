"""Verdicts from figures that are made up, against scipy's tests and worked examples."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from sparsebench.sweep.cells import Run
from sparsebench.sweep.claims import decide, write_claims
from sparsebench.sweep.grid import Grid, Line
from sparsebench.sweep.results import Entry, Figure, Outcome, Results
from sparsebench.sweep.spec import Axis, Claim, Metric, Published, TableSpec, Term

ACCURACY = Metric("test/accuracy", factor=100.0)
WEIGHTS = Metric("nonzeros", summary="range")

#: Hours of sleep gained by ten patients on two drugs (Student, The probable error of a mean,
#: Biometrika 6, 1908), which R has as ``sleep``.
FIRST = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def results_of(figures, claims, metric=ACCURACY):
    """Results of ``figures[row] = {seed: figure}`` or ``[figures]``, in one column."""
    rows = [Line(row, row.lower(), ()) for row in figures]
    columns = [Line("", None, ())]
    entries = {}
    for i, by_seed in enumerate(figures.values()):
        if not isinstance(by_seed, dict):
            by_seed = dict(enumerate(by_seed))
        outcomes = {}
        for seed, figure in by_seed.items():
            run = Run(f"{i}-{seed}", Path(), (), "", 1, True)
            metrics = {} if figure is None else {metric.key: figure}
            outcomes[seed] = Outcome(run, "finished", "", metrics, {}, 0.0)
        entries[i, 0] = Entry(outcomes)
    spec = TableSpec(
        name="mine", scale="quick", rows=Axis("method"), metric=[metric], claims=claims
    )
    grid = Grid(spec, tuple(rows), tuple(columns), (), (), seeds=(0,), changed=False)
    return Results(grid, entries, {}, (metric,))


def claim(relation="above", by=0.0, first="A", second="B", name="one", weight=1.0):
    terms = [Term(first, "", weight), Term(second, "", -weight)]
    return Claim(name, "A beats B.", "A paper, table 1", "a", "", relation, by, terms)


def verdict_of(figures, *claims, metric=ACCURACY):
    return decide(results_of(figures, list(claims), metric))[0]


def hours(relation, by, n=10):
    """The verdict on the drugs; a factor of 1 keeps the hours."""
    figures = {"A": FIRST[:n], "B": SECOND[:n]}
    return verdict_of(figures, claim(relation, by), metric=replace(ACCURACY, factor=1.0))


def test_worked_example_of_a_paired_test():
    """R: t = -4.0621, df = 9, p-value = 0.002833, interval -2.4598858 -0.7001142."""
    found = hours("below", 0.0)
    assert (found.verdict, found.n, found.scale) == ("supported", 10, "quick")
    assert found.p == pytest.approx(0.002833, abs=5e-7)
    assert found.p_holm == found.p
    assert found.difference == pytest.approx(-1.58)
    assert (found.low, found.high) == pytest.approx((-2.4598858, -0.7001142), abs=5e-8)
    assert found.seeds_needed is None
    assert hours("above", 0.0).verdict == "refuted"


def test_worked_example_of_an_equivalence_test():
    """statsmodels' ``ttost_paired``: p = 0.98924 within 0.5 hours, 0.0026556 within 3."""
    found = hours("same", 0.5)
    assert found.verdict == "refuted"
    assert found.p == pytest.approx(2 * (1 - 0.9892407566216127))
    wide = hours("same", 3.0)
    assert wide.verdict == "supported"
    assert wide.p == pytest.approx(2 * 0.002655570292658671)
    assert (wide.low, wide.high) == (found.low, found.high)


@pytest.mark.parametrize(
    ("relation", "by", "bound", "side"),
    [
        ("above", 0.5, 0.5, "greater"),
        ("below", 0.5, -0.5, "less"),
        ("as_good", 0.5, -0.5, "greater"),
    ],
)
@pytest.mark.parametrize("shift", [-0.02, -0.004, 0.003, 0.03])
def test_each_relation_is_scipys(relation, by, bound, side, shift):
    a = [0.90 + shift, 0.92 + shift, 0.87 + shift, 0.95 + shift]
    b = [0.901, 0.917, 0.874, 0.946]
    found = verdict_of({"A": a, "B": b}, claim(relation, by))
    differences = [100 * (x - y) for x, y in zip(a, b, strict=True)]
    p = stats.ttest_1samp(differences, bound).pvalue
    assert found.p == pytest.approx(p, rel=1e-6)
    holds = stats.ttest_1samp(differences, bound, alternative=side).pvalue < 0.5
    expected = ("supported" if holds else "refuted") if p < 0.05 else "inconclusive"
    assert found.verdict == expected


def test_holms_correction_over_the_claims_of_a_table():
    figures = {
        "A": [0.90, 0.91, 0.92, 0.935],
        "B": [0.80, 0.81, 0.82, 0.83],
        "C": [0.88, 0.90, 0.89, 0.915],
    }
    claims = [
        claim(name="clear"),
        claim(first="A", second="C", name="near"),
        claim(first="C", second="A", by=1.0, name="wrong"),
        claim(first="A", second="X", name="missing"),
    ]
    clear, near, wrong, missing = decide(results_of(figures, claims))
    p = [v.p for v in (clear, near, wrong)]
    assert p[0] < p[2] < p[1] < 0.05
    assert clear.p_holm == pytest.approx(3 * p[0])
    assert wrong.p_holm == pytest.approx(2 * p[2])
    assert near.p_holm == pytest.approx(max(2 * p[2], p[1]))
    assert [v.verdict for v in (clear, wrong, missing)] == ["supported", "refuted", "not run"]
    assert missing.p is None
    assert missing.p_holm is None


def test_significant_alone_and_not_as_one_of_two():
    figures = {"A": [0.90, 0.91, 0.92, 0.935], "C": [0.88, 0.90, 0.89, 0.925]}
    one = claim(second="C")
    (alone,) = decide(results_of(figures, [one]))
    both = decide(results_of(figures, [one, replace(one, id="again")]))
    assert alone.verdict == "supported"
    assert 0.025 < alone.p < 0.05
    assert [v.verdict for v in both] == ["inconclusive"] * 2
    assert [v.p_holm for v in both] == pytest.approx([2 * alone.p] * 2)


def test_inconclusive_says_how_many_seeds_would_do():
    """Mean 0.5 and standard deviation 1: 34 seeds, as R's power.t.test rounded up."""
    unit = [0.5 + (x - 2) / math.sqrt(2.5) for x in range(5)]
    figures = {"A": [u / 100 for u in unit], "B": [0.0] * 5}
    found = verdict_of(figures, claim())
    assert (found.verdict, found.seeds_needed) == ("inconclusive", 34)
    both = decide(results_of(figures, [claim(name="x"), claim("below", name="y")]))
    assert [v.seeds_needed for v in both] == [41, 41]  # at 2.5 %


def test_a_difference_on_the_bound_needs_no_number_of_seeds():
    found = verdict_of({"A": [0.01, 0.02, 0.03], "B": [0.0] * 3}, claim(by=2.0))
    assert (found.verdict, found.p, found.seeds_needed) == ("inconclusive", 1.0, None)


@pytest.mark.parametrize("n", [1, 2])
def test_fewer_than_three_seeds_decide_nothing(n):
    found = hours("below", 0.0, n)
    assert (found.verdict, found.n, found.low, found.p) == ("not decided", n, None, None)
    assert found.difference == pytest.approx(sum(FIRST[:n]) / n - sum(SECOND[:n]) / n)
    assert found.note == f"{n} of the 3 paired seeds needed"


def test_only_seeds_that_all_cells_have():
    figures = {
        "A": {0: 0.9, 1: 0.8, 2: 0.7, 3: None, 4: 0.1, 5: 0.5},
        "B": {2: 0.69, 1: 0.795, 0: 0.88, 3: 0.5, 4: None, 6: 0.5},
    }
    found = verdict_of(figures, claim())
    assert found.n == 3
    assert found.difference == pytest.approx((2 + 0.5 + 1) / 3)
    none = verdict_of({"A": {0: 0.9}, "B": {1: 0.9}}, claim())
    assert (none.verdict, none.n, none.difference) == ("not decided", 0, None)
    assert none.note == "the cells have no seed in common"


def test_cells_that_are_not_there():
    figures = {"A": [0.9, 0.8, 0.7], "B": [None, None, None]}
    found = verdict_of(figures, claim())
    assert (found.verdict, found.n, found.note) == ("not run", 0, "B: no run has this figure")
    found = verdict_of(figures, claim(second="Y"))
    assert (found.verdict, found.note) == ("not run", "Y: not part of this sweep")


def test_a_figure_that_is_no_number_counts_as_missing():
    found = verdict_of({"A": [0.9, math.nan, 0.7], "B": [0.8, 0.7, 0.6]}, claim())
    assert (found.verdict, found.n) == ("not decided", 2)


@pytest.mark.parametrize(
    ("relation", "by", "expected"),
    [
        ("above", 19.0, "supported"),
        ("above", 20.0, "refuted"),
        ("below", 0.0, "refuted"),
        ("same", 20.5, "supported"),
        ("same", 20.0, "refuted"),
        ("as_good", 1.0, "supported"),
    ],
)
@pytest.mark.parametrize("n", [1, 4])
def test_counts_are_exact(relation, by, expected, n):
    found = verdict_of({"A": [120] * n, "B": [100] * n}, claim(relation, by), metric=WEIGHTS)
    assert (found.verdict, found.difference, found.n) == (expected, 20.0, n)
    assert (found.low, found.high, found.p, found.p_holm) == (None,) * 4
    assert found.note.startswith("exact")


def test_counts_that_differ_over_seeds_are_tested():
    found = verdict_of({"A": [120, 121, 119], "B": [100] * 3}, claim(), metric=WEIGHTS)
    assert found.verdict == "supported"
    assert found.p == pytest.approx(stats.ttest_1samp([20, 21, 19], 0).pvalue)


@pytest.mark.parametrize(
    ("relation", "by", "expected", "p"),
    [
        ("above", 0.0, "supported", 0.0),
        ("above", 0.1, "inconclusive", 1.0),
        ("above", 0.11, "refuted", 0.0),
        ("same", 0.11, "supported", 0.0),
        ("same", 0.09, "refuted", 0.0),
    ],
)
def test_seeds_without_spread(relation, by, expected, p):
    """0.9 - 0.8, 0.4 - 0.3 and 0.2 - 0.1 differ in their last binary digits only."""
    figures = {"A": [0.9, 0.4, 0.2], "B": [0.8, 0.3, 0.1]}
    found = verdict_of(figures, claim(relation, by), metric=replace(ACCURACY, factor=1.0))
    assert (found.verdict, found.p, found.seeds_needed) == (expected, p, None)
    assert found.low == found.high == found.difference == 0.1
    assert found.note == "all seeds have the same difference"


def test_more_than_two_terms():
    """The gap between A and B is smaller than that between C and D."""
    figures = {
        "A": [0.90, 0.91, 0.93],
        "B": [0.89, 0.90, 0.91],
        "C": [0.80, 0.82, 0.85],
        "D": [0.70, 0.71, 0.74],
    }
    terms = [Term(row, "", weight) for row, weight in zip("abcd", (1, -1, -1, 1), strict=True)]
    found = verdict_of(figures, replace(claim("below"), terms=terms))
    assert found.difference == pytest.approx((1 - 10 + 1 - 11 + 2 - 11) / 3)
    assert found.verdict == "supported"


def against_published(figures, published, claims, metric=ACCURACY):
    results = results_of(figures, claims, metric)
    grid = replace(results.grid, seeds=tuple(range(len(figures["A"]))))
    group = Published({"A": published}, "A paper")
    figure = Figure(published, None, group)
    return decide(replace(results, grid=grid, published={(0, 0, metric.key): figure}))[0]


def test_against_a_published_figure():
    """Measured 90, 91, 92 beside the published 90.5: a one-sample test of 91 - 90.5."""
    terms = [Term("A"), Term("A", weight=-1.0, published=True)]
    same = replace(claim("same", 3.0), terms=terms)
    found = against_published({"A": [0.90, 0.91, 0.92]}, 90.5, [same])
    test = stats.ttest_1samp([90, 91, 92], 90.5)
    assert (found.difference, found.n) == (pytest.approx(0.5), 3)
    interval = [end - 90.5 for end in test.confidence_interval()]
    assert [found.low, found.high] == pytest.approx(interval)
    bound = stats.ttest_1samp([90, 91, 92], 90.5 + 3, alternative="less").pvalue
    assert found.p == pytest.approx(2 * bound)


def test_a_count_against_a_published_one_needs_one_seed():
    terms = [Term("A"), Term("A", weight=-1.0, published=True)]
    same = replace(claim("same", 0.01), terms=terms)
    for count, verdict in ((0.42, "supported"), (0.45, "refuted")):
        found = against_published({"A": [count]}, 0.415, [same], WEIGHTS)
        assert (found.verdict, found.n, found.low) == (verdict, 1, None)


def test_file(tmp_path):
    figures = {"A": [0.9, 0.8, 0.75], "B": [0.8, 0.7, 0.6]}
    claims = [claim(), claim(second="X", name="two", relation="same", by=1.0)]
    verdicts = decide(results_of(figures, claims))
    write_claims(verdicts, tmp_path / "claims.json")
    one, two = json.loads((tmp_path / "claims.json").read_text())
    assert one == {
        "id": "one",
        "claim": "A beats B.",
        "source": "A paper, table 1",
        "method": "a",
        "metric": "test/accuracy",
        "relation": "above",
        "by": 0.0,
        "cells": [
            {"row": "A", "column": "", "weight": 1.0, "published": False},
            {"row": "B", "column": "", "weight": -1.0, "published": False},
        ],
        "scale": "quick",
        "verdict": "supported",
        "difference": pytest.approx(35 / 3),
        "interval": pytest.approx([4.4956, 18.8378], abs=1e-4),
        "n": 3,
        "p": pytest.approx(0.0199, abs=1e-4),
        "p_holm": one["p"],
        "seeds_needed": None,
        "note": "",
    }
    assert (two["verdict"], two["interval"], two["difference"], two["n"]) == (
        "not run",
        None,
        None,
        0,
    )


def test_no_claims(tmp_path):
    assert decide(results_of({"A": [1.0]}, [])) == []
    write_claims([], tmp_path / "claims.json")
    assert json.loads((tmp_path / "claims.json").read_text()) == []


pairs = st.lists(
    st.tuples(*2 * [st.integers(0, 1000).map(lambda k: k / 1000)]), min_size=3, max_size=8
)
bounds = st.sampled_from([0.5, 1.0, 5.0, 30.0])


def figures_of(values):
    return {"A": [a for a, _ in values], "B": [b for _, b in values]}


@settings(deadline=None)
@given(pairs, bounds)
def test_swapping_the_cells_turns_above_into_below(values, by):
    figures = figures_of(values)
    one = verdict_of(figures, claim("above", by))
    other = verdict_of(figures, claim("below", by, first="B", second="A"))
    assert (one.verdict, one.p, one.seeds_needed) == (other.verdict, other.p, other.seeds_needed)
    assert one.difference == -other.difference
    assert (one.low, one.high) == (-other.high, -other.low)


@settings(deadline=None)
@given(pairs, bounds, st.sampled_from(["above", "below", "as_good", "same"]))
def test_the_unit_changes_no_p_value(values, by, relation):
    figures = figures_of(values)
    differences = [a - b for a, b in values]
    assume(max(differences) - min(differences) > 1e-4)
    percent = verdict_of(figures, claim(relation, by))
    unit = replace(ACCURACY, factor=1.0)
    plain = verdict_of(figures, claim(relation, by / 100), metric=unit)
    assert plain.verdict == percent.verdict
    assert plain.p == pytest.approx(percent.p, rel=1e-6)
    assert plain.difference == pytest.approx(percent.difference / 100, abs=1e-9)


@settings(deadline=None)
@given(pairs, bounds, st.sampled_from(["above", "below", "as_good", "same"]))
def test_a_claim_alone_agrees_with_its_interval(values, by, relation):
    """Two-sided at 5 % and a 95 % interval are the same thing, seen twice."""
    found = verdict_of(figures_of(values), claim(relation, by))
    low, high = {
        "above": (by, math.inf),
        "below": (-math.inf, -by),
        "as_good": (-by, math.inf),
        "same": (-by, by),
    }[relation]
    ends = [abs(end - bound) for end in (found.low, found.high) for bound in (low, high)]
    assume(min(ends) > 1e-6)
    if low < found.low and found.high < high:
        assert found.verdict == "supported"
    elif found.high < low or high < found.low:
        assert found.verdict == "refuted"
    else:
        assert found.verdict == "inconclusive"
        assert found.seeds_needed is None or found.seeds_needed > found.n
