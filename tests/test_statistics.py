"""Means, intervals and paired differences, against a worked example and against scipy."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from sparsebench.sweep.statistics import Estimate, estimate, paired

numbers = st.floats(-1e3, 1e3, allow_nan=False)


def test_worked_example():
    """1..5: mean 3, variance 2.5, standard error sqrt(0.5), t(0.975, 4) = 2.776445."""
    found = estimate([1, 2, 3, 4, 5])
    assert found.mean == 3.0
    assert found.n == 5
    assert found.half == pytest.approx(2.7764451052 * 0.5**0.5, rel=1e-9)
    assert found.low == pytest.approx(3 - 1.9632432, rel=1e-6)


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
