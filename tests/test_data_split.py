"""Subsets and validation sets keep the class shares exactly."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebench.data import load
from sparsebench.data.stratify import amount, others, quotas, stratified
from sparsebench.errors import UserError


def largest_remainders(counts, total):
    """The same by exact fractions, one unit at a time."""
    size = sum(counts)
    exact = [Fraction(count * total, size) for count in counts]
    shares = [math.floor(value) for value in exact]
    order = sorted(range(len(counts)), key=lambda i: (shares[i] - exact[i], i))
    for i in order[: total - sum(shares)]:
        shares[i] += 1
    return shares


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(sum), st.data())
def test_quotas_by_largest_remainder(counts, data):
    total = data.draw(st.integers(0, sum(counts)))
    got = quotas(torch.tensor(counts), total).tolist()
    assert got == largest_remainders(counts, total)
    assert sum(got) == total
    assert all(share <= count for share, count in zip(got, counts, strict=True))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.data())
def test_stratified_choice(labels, data):
    labels = torch.tensor(labels)
    total = data.draw(st.integers(0, len(labels)))
    chosen = stratified(labels, total, "name", 3)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    want = largest_remainders(torch.bincount(labels).tolist(), total)
    assert torch.bincount(labels[chosen], minlength=len(want)).tolist() == want
    assert torch.equal(chosen, stratified(labels, total, "name", 3))
    left = others(chosen, len(labels))
    assert sorted([*chosen.tolist(), *left.tolist()]) == list(range(len(labels)))


def test_a_smaller_choice_lies_in_a_larger_one():
    labels = torch.arange(300) % 3
    small, large = (set(stratified(labels, n, "s", 0).tolist()) for n in (30, 150))
    assert small < large


def test_choices_differ_between_seeds_and_are_spread():
    labels = torch.arange(300) % 3
    first, second = (set(stratified(labels, 150, "s", seed).tolist()) for seed in (0, 1))
    assert first != second
    assert 50 < len([i for i in first if i < 150]) < 100  # not simply the first ones


@pytest.mark.parametrize(
    "value, count",
    [(0.25, 50), (1.0, 200), (0.0, 0), (0, 0), (1, 1), (200, 200), (50.0, 50), (0.0024, 0)],
)
def test_amount_of_a_share_or_a_count(value, count):
    assert amount("data.subset", value, 200) == count


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), float("inf"), 201, -1, True, "half"])
def test_amounts_that_are_none(value):
    with pytest.raises(
        UserError, match="data.subset=.*: a share between 0 and 1.0, or a count up to 200"
    ):
        amount("data.subset", value, 200)


def digits(**keys):
    return load({"name": "digits", **keys})


def classes(images):
    return torch.bincount(images.labels, minlength=10).tolist()


def test_validation_is_held_out_of_the_training_images():
    sets, whole = digits(validation=0.1), digits(validation=0)
    assert whole.validation is None
    assert (len(sets.train), len(sets.validation), len(whole.train)) == (1293, 144, 1437)
    rows = torch.cat([sets.train.rows, sets.validation.rows]).sort().values
    assert torch.equal(rows, torch.arange(1437))
    assert classes(sets.validation) == largest_remainders(classes(whole.train), 144)
    assert torch.equal(sets.train.labels, whole.train.labels[sets.train.rows])


def test_subset_comes_first_and_has_a_seed_of_its_own():
    whole, half = digits(validation=0), digits(subset=0.5, validation=0)
    assert classes(half.train) == largest_remainders(classes(whole.train), round(0.5 * 1437))
    split = digits(subset=0.5, validation=100)
    assert (len(split.train), len(split.validation)) == (718 - 100, 100)
    assert set(split.train.rows.tolist()) < set(half.train.rows.tolist())
    other = digits(subset=0.5, validation=0, split_seed=1)
    assert not torch.equal(other.train.rows, half.train.rows)
    assert classes(other.train) == classes(half.train)
    assert torch.equal(other.test.images, whole.test.images)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"subset": 1438}, "data.subset=1438: .* a count up to 1437"),
        ({"subset": 1.5}, "data.subset=1.5: a share between 0 and 1.0"),
        ({"subset": 0}, "data.subset=0: leaves no image"),
        ({"subset": 1}, "data.subset=1: leaves images of one class only"),
        ({"validation": 0.0001}, "data.validation=0.0001: of 1437 images leaves none"),
        ({"validation": 1437}, "data.validation=1437: leaves no image to train on"),
        ({"validation": 1.0}, "data.validation=1.0: leaves no image to train on"),
        ({"validation": -0.1}, "data.validation=-0.1: a share between 0 and 1.0"),
        ({"validation": 2000}, "data.validation=2000: .* a count up to 1437"),
        ({"split_seed": -1}, "data.split_seed=-1: an integer of at least 0"),
        ({"split_seed": 0.5}, "data.split_seed=0.5: an integer of at least 0"),
        ({"workers": -2}, "data.workers=-2: an integer of at least 0"),
        ({"augment": "standart"}, "data.augment=standart: .*; did you mean 'standard'"),
        ({"num_classes": 7}, "data.num_classes=7: digits has 10 classes"),
        ({"num_classes": 11}, "data.num_classes=11: digits has 10 classes"),
        ({"input_shape": [3, 32, 32]}, r"data.input_shape=\[3, 32, 32\]: digits has \[1, 8, 8\]"),
        ({"input_shape": []}, r"data.input_shape=\[\]: such as"),
        ({"train_size": 1500}, r"data.train_size=1500: digits has 1437 images"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(keys, message):
    with pytest.raises(UserError, match=message) as error:
        digits(**keys)
    assert "\n" not in str(error.value)
