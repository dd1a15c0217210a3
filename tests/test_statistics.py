"""Means, intervals, tests and powers, against worked examples and against scipy."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from sparsebench.sweep.statistics import (
    MOST,
    Estimate,
    Student,
    estimate,
    holm,
    paired,
    power,
    seeds_needed,
    student,
    welch,
)

numbers = st.floats(-1e3, 1e3, allow_nan=False)


def test_worked_example():
    """1..5: mean 3, variance 2.5, standard error sqrt(0.5), t(0.975, 4) = 2.776445."""
    found = estimate([1, 2, 3, 4, 5])
    assert found.mean == 3.0
    assert found.n == 5
    assert found.half == pytest.approx(2.7764451052 * 0.5**0.5, rel=1e-9)
    assert found.low == pytest.approx(3 - 1.9632432, rel=1e-6)


@settings(deadline=None)
@given(st.lists(numbers, min_size=3, max_size=12), st.sampled_from([0.9, 0.95, 0.99]))
def test_interval_is_scipys(values, level):
    assume(max(values) - min(values) > 1e-6)
    found = estimate(values, level)
    scale = stats.sem(values)
    low, high = stats.t.interval(level, len(values) - 1, loc=sum(values) / len(values), scale=scale)
    assert found.low == pytest.approx(low, rel=1e-9, abs=1e-7)
    assert found.high == pytest.approx(high, rel=1e-9, abs=1e-7)


@pytest.mark.parametrize(("values", "mean"), [([4.0], 4.0), ([4.0, 5.0], 4.5)])
def test_fewer_than_three_have_no_interval(values, mean):
    assert estimate(values) == Estimate(mean, None, None, len(values))
    assert estimate(values).half is None


def test_equal_values_have_an_interval_of_no_width():
    assert estimate([0.25] * 4) == Estimate(0.25, 0.25, 0.25, 4)


def test_no_values():
    assert estimate([]) is None
    assert paired({0: 1.0}, {1: 1.0}) is None


@settings(deadline=None)
@given(st.lists(st.tuples(numbers, numbers), min_size=3, max_size=10, unique=True))
def test_paired_is_scipys(pairs):
    first = {seed: a for seed, (a, _) in enumerate(pairs)}
    second = {seed: b for seed, (_, b) in enumerate(pairs)}
    found = paired(first, second)
    differences = [a - b for a, b in pairs]
    assume(max(differences) - min(differences) > 1e-3)
    interval = stats.ttest_rel(*zip(*pairs, strict=True)).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(interval), rel=1e-6, abs=1e-6)


def test_paired_takes_common_seeds_only():
    found = paired({0: 1.0, 1: 2.0, 2: 3.0, 7: 100.0}, {2: 1.0, 1: 1.0, 0: 1.0, 8: -100.0})
    assert found.n == 3
    assert found.mean == 1.0


def test_pairing_separates_what_intervals_do_not():
    """Seeds differ by ten, methods by one: only the paired interval excludes zero."""
    first = {0: 11.0, 1: 21.1, 2: 31.0, 3: 40.9}
    second = {0: 10.0, 1: 20.0, 2: 30.0, 3: 40.0}
    assert estimate(first.values()).low < estimate(second.values()).mean
    assert paired(first, second).low > 0


def test_scaled_to_percent():
    assert Estimate(0.5, 0.4, 0.6, 3).scaled(100) == Estimate(50.0, 40.0, 60.0, 3)
    assert Estimate(0.5, None, None, 1).scaled(100) == Estimate(50.0, None, None, 1)


#: R's data set ``sleep``: hours gained by ten patients on two drugs.
FIRST = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def test_equal_values_are_their_own_mean():
    """The sum of three 0.1 is not 0.3 in binary."""
    assert estimate([0.1] * 3) == Estimate(0.1, 0.1, 0.1, 3)


def test_worked_example_of_welch():
    """R: t = -1.8608, df = 17.776, p-value = 0.07939, interval -3.3654832 0.2054832."""
    found = welch(FIRST, SECOND)
    assert found.mean / found.error == pytest.approx(-1.8608, abs=5e-5)
    assert found.freedom == pytest.approx(17.776, abs=5e-4)
    assert 2 * found.p_below(0.0) == pytest.approx(0.07939, abs=5e-6)
    assert found.interval() == pytest.approx((-3.3654832, 0.2054832), abs=5e-8)


@settings(deadline=None)
@given(*2 * [st.lists(numbers, min_size=2, max_size=9)])
def test_welch_is_scipys(first, second):
    assume(max(first) - min(first) > 1e-3 or max(second) - min(second) > 1e-3)
    found = welch(first, second)
    expected = stats.ttest_ind(first, second, equal_var=False)
    assert found.freedom == pytest.approx(expected.df, rel=1e-9)
    assert found.interval() == pytest.approx(
        tuple(expected.confidence_interval()), rel=1e-9, abs=1e-6
    )
    sides = min(found.p_above(0.0), found.p_below(0.0))
    assert 2 * sides == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)


@settings(deadline=None)
@given(st.lists(numbers, min_size=2, max_size=9), numbers)
def test_one_sided_tests_are_scipys(values, bound):
    assume(max(values) - min(values) > 1e-3)
    found = student(values)
    for p, side in ((found.p_above(bound), "greater"), (found.p_below(bound), "less")):
        expected = stats.ttest_1samp(values, bound, alternative=side).pvalue
        assert p == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("values", [[0.1] * 3, [0.1, 0.2, 0.4]])
def test_no_test_fails_an_infinite_bound(values):
    found = student(values)
    assert (found.p_above(-math.inf), found.p_below(math.inf)) == (0.0, 0.0)
    assert (found.p_below(-math.inf), found.p_above(math.inf)) == (1.0, 1.0)


def test_values_without_spread_say_all_but_on_the_bound():
    found = student([0.1] * 3)
    assert (found.p_above(0.0), found.p_below(0.0)) == (0.0, 1.0)
    assert (found.p_above(0.2), found.p_below(0.2)) == (1.0, 0.0)
    assert (found.p_above(0.1), found.p_below(0.1)) == (1.0, 1.0)
    assert welch([1.0, 1.0], [2.0, 2.0, 2.0]) == Student(-1.0, 0.0, 3.0)


def test_worked_example_of_equivalence():
    """statsmodels' ``ttost_paired`` within 0.5 hours: t = -2.7766, 0.98924; -5.3476, 0.00023190."""
    found = student([a - b for a, b in zip(FIRST, SECOND, strict=True)])
    assert (found.mean + 0.5) / found.error == pytest.approx(-2.7766442392737973)
    assert (found.mean - 0.5) / found.error == pytest.approx(-5.347611127490276)
    assert found.p_above(-0.5) == pytest.approx(0.9892407566216127)
    assert found.p_below(0.5) == pytest.approx(0.00023190270448159315)


def test_worked_example_of_holm():
    """As statsmodels' ``multipletests(p, method="holm")`` and R's ``p.adjust``."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    spread = [0.042, 0.001, 0.031, 0.014, 0.007]
    assert holm(spread) == pytest.approx([0.062, 0.005, 0.062, 0.042, 0.028])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closure_of_bonferroni(p_values):
    """A claim falls if every set it belongs to falls by Bonferroni (Marcus et al. 1976)."""
    numbered = range(len(p_values))
    sets = [s for k in numbered for s in itertools.combinations(numbered, k + 1)]
    expected = [
        max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in sets if i in s)
        for i in numbered
    ]
    assert holm(p_values) == pytest.approx(expected)


def test_worked_examples_of_power():
    """R: ``pwr.t.test(d=0.2, n=60, sig.level=0.1, type="one.sample")`` and ``power.mean``.

    Both count finding an effect on the wrong side, which is of no use here.
    """
    both = power(0.2, 60, 0.1) + power(-0.2, 60, 0.1)
    assert both == pytest.approx(0.4555818, abs=5e-8)
    effect = 7 / math.sqrt(80.5)
    assert power(effect, 15) + power(-effect, 15) == pytest.approx(0.8021669, abs=1e-6)


@pytest.mark.parametrize("n", [3, 5, 20, 400])
@pytest.mark.parametrize("effect", [-0.3, 0.0, 0.1, 1.0, 5.0])
@pytest.mark.parametrize("level", [0.05, 0.05 / 30])
def test_power_is_scipys(n, effect, level):
    critical = stats.t.isf(level / 2, n - 1)
    expected = stats.nct.sf(critical, n - 1, effect * math.sqrt(n))
    assert power(effect, n, level) == pytest.approx(expected, abs=1e-7)


def test_a_bound_at_infinity_is_always_passed():
    assert (power(math.inf, 3), power(-math.inf, 3)) == (1.0, 0.0)


def test_seeds_needed_for_one_bound():
    """R: ``power.t.test(delta=0.5, power=0.8, type="one.sample")`` says n = 33.36713."""
    assert seeds_needed([0.5], 0.05) == 34
    assert seeds_needed([0.5, math.inf], 0.05) == 34
    assert seeds_needed([50.0], 0.05) == 3


@pytest.mark.parametrize("effects", [[0.0], [-1.0], [0.0267], [3.0, -0.1]])
def test_no_number_of_seeds_is_enough(effects):
    assert seeds_needed(effects, 0.05) is None


@settings(deadline=None)
@given(st.floats(0.05, 4.0), st.sampled_from([0.05, 0.01, 0.05 / 12]))
def test_seeds_needed_is_the_least_number(effect, level):
    found = seeds_needed([effect], level)
    assert 3 <= found <= MOST
    assert power(effect, found, level) >= 0.8
    assert found == 3 or power(effect, found - 1, level) < 0.8


@pytest.mark.parametrize(("mean", "margin"), [(0.0, 0.5), (0.1, 0.5), (0.0, 1.0), (-0.4, 1.5)])
def test_seeds_needed_for_an_equivalence(mean, margin):
    """Power of two one-sided tests by integrating over the standard deviation seen."""

    def chance(n):
        deviation = stats.chi(n - 1, scale=1 / math.sqrt(n - 1))
        seen = deviation.ppf((np.arange(20_000) + 0.5) / 20_000)
        room = margin - stats.t.isf(0.025, n - 1) * seen / math.sqrt(n)
        error = 1 / math.sqrt(n)
        hits = stats.norm.cdf((room - mean) / error) - stats.norm.cdf((-room - mean) / error)
        return float(np.where(room > 0, hits, 0).mean())

    found = seeds_needed([margin + mean, margin - mean], 0.05)
    assert chance(found) >= 0.8
    assert chance(found - 1) < 0.8
