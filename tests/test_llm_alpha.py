"""AlphaPruning: exponents of spectra and the sparsities made from them, by hand."""

import math

import pytest
import torch

from sparsebench.llm.heavy_tails import MOST, exponent, sparsities


def test_hill_by_hand():
    e = math.e
    assert exponent(torch.tensor([e, 1.0, e, 1.0])) == pytest.approx(2.0)
    assert exponent(torch.tensor([1.0, 1.0, e, e**3])) == pytest.approx(1 + 2 / 4)
    five = torch.tensor([0.1, 0.5, 1.0, e, e**2])  # k = 2
    assert exponent(five) == pytest.approx(1 + 2 / 3)


def test_a_power_law_is_found_again_wherever_its_tail_begins():
    g = torch.Generator().manual_seed(0)
    for true in (2.0, 3.5):
        law = torch.rand(20_000, generator=g, dtype=torch.float64) ** (-1 / (true - 1))
        for tail in ("half", "peak"):
            assert exponent(law, tail) == pytest.approx(true, rel=0.03)


def test_the_peak_leaves_out_what_lies_below_it():
    g = torch.Generator().manual_seed(0)
    law = 2.0 * torch.rand(4000, generator=g, dtype=torch.float64) ** (-1 / 1.5)
    low = 0.02 + torch.rand(3000, generator=g, dtype=torch.float64)
    both = torch.cat([law, low])
    assert exponent(both, "peak") == pytest.approx(2.5, rel=0.05)


def test_a_scale_changes_no_exponent_and_zeros_are_no_numbers():
    g = torch.Generator().manual_seed(1)
    values = torch.rand(200, generator=g, dtype=torch.float64)
    for tail in ("half", "peak"):
        assert exponent(8 * values, tail) == pytest.approx(exponent(values, tail))
        assert math.isfinite(exponent(torch.cat([values, torch.zeros(9)]), tail))
        assert math.isfinite(exponent(torch.ones(6), tail))


def test_light_tails_are_sparser_around_the_weighted_mean():
    found = sparsities({0: 2.0, 1: 3.0, 2: 4.0}, {0: 10, 1: 10, 2: 20}, 0.6, 0.25)
    # 0.75, 1, 1.25 with weights 1, 1, 2 have the mean 4.25 / 4
    scale = 0.6 / (4.25 / 4)
    assert found == pytest.approx({0: 0.75 * scale, 1: scale, 2: 1.25 * scale})
    assert sparsities({0: 3.0, 1: 3.0}, {0: 1, 1: 5}, 0.6, 0.25) == {0: 0.6, 1: 0.6}
    assert sparsities({0: 2.0, 1: 3.0}, {0: 1, 1: 5}, 0.6, 0.0) == pytest.approx({0: 0.6, 1: 0.6})


def test_no_block_is_emptied_and_the_others_make_up_for_it():
    found = sparsities({0: 1.0, 1: 2.0, 2: 3.0}, {0: 4, 1: 4, 2: 4}, 0.8, 0.3)
    assert found[2] == MOST
    assert sum(found.values()) / 3 == pytest.approx(0.8)
    assert found[0] / found[1] == pytest.approx(0.7)
