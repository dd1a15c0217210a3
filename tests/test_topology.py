"""Exploration, distances, degrees and dead units against hand-made masks."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparsebench.sparsity.topology import (
    DeadUnits,
    FanIn,
    ItopTracker,
    dead_units,
    distance,
    fan_in,
    nnstd,
    survived,
)


def rows(*texts):
    """A mask drawn as text: one string a row, x for a connection."""
    return torch.tensor([[mark == "x" for mark in text] for text in texts])


FIRST = {"a": rows("xx..", "..x."), "b": rows(".x", "x.")}
SECOND = {"a": rows("x...", "..xx"), "b": rows(".x", ".x")}


def test_itop_is_the_union_of_all_masks():
    tracker = ItopTracker(FIRST)
    assert tracker.rate == pytest.approx(5 / 12)
    for _ in range(3):
        tracker.update(FIRST)  # static: R_s stays the density
    assert tracker.rate == pytest.approx(5 / 12)
    tracker.update(SECOND)
    tracker.update({"a": rows("....", "...."), "b": rows("..", "..")})
    assert tracker.layers() == {"a": 4 / 8, "b": 3 / 4}
    assert tracker.rate == 7 / 12


def test_itop_keeps_no_hold_of_the_masks_it_was_given():
    mask = rows("x.")
    tracker = ItopTracker({"a": mask})
    mask.fill_(True)
    assert tracker.rate == 0.5
    other = rows("x.")
    tracker.update({"a": other})
    assert other.tolist() == [[True, False]]


def test_itop_state_is_packed_and_goes_on(tmp_path):
    assert ItopTracker().rate == 0.0
    masks = {"a": torch.arange(33).view(3, 11) % 3 == 0, "b": torch.ones(2, 2, 2).bool()}
    tracker = ItopTracker(masks)
    state = tracker.state_dict()
    assert {name: layer["bits"].numel() for name, layer in state.items()} == {"a": 5, "b": 1}
    torch.save(state, tmp_path / "state.pt")
    resumed = ItopTracker()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert resumed.layers() == {"a": 11 / 33, "b": 1.0}
    for each in (tracker, resumed):
        each.update({"a": torch.arange(33).view(3, 11) % 3 == 1, "b": masks["b"]})
    assert resumed.layers() == tracker.layers() == {"a": 22 / 33, "b": 1.0}


def test_random_growth_explores_as_expected():
    """E[R_s] = 1 - (1 - d)(1 - p)^u with p = k / (n - nnz + k): 0.3516 after 10 updates."""
    n, nnz, k, updates, runs = 1000, 100, 30, 10, 300
    generator = torch.Generator().manual_seed(0)
    rates = []
    for _ in range(runs):
        mask = torch.zeros(n, dtype=torch.bool)
        mask[torch.randperm(n, generator=generator)[:nnz]] = True
        tracker = ItopTracker({"w": mask})
        for _ in range(updates):
            active = mask.nonzero().view(-1)
            mask[active[torch.randperm(nnz, generator=generator)[:k]]] = False
            absent = (~mask).nonzero().view(-1)
            mask[absent[torch.randperm(len(absent), generator=generator)[:k]]] = True
            tracker.update({"w": mask})
        rates.append(tracker.rate)
    hit = 1 - (1 - k / (n - nnz + k)) ** updates
    expected = nnz / n + (1 - nnz / n) * hit
    assert expected == pytest.approx(0.351607, abs=5e-7)
    binomial_sd = math.sqrt((n - nnz) * hit * (1 - hit)) / n
    assert abs(sum(rates) / runs - expected) < 3 * binomial_sd / math.sqrt(runs)


def test_survival():
    assert survived(FIRST, FIRST) == 1.0
    assert survived(FIRST, SECOND) == 3 / 5
    assert survived(FIRST, {name: ~mask for name, mask in FIRST.items()}) == 0.0
    assert survived({"a": rows("..")}, {"a": rows("xx")}) == 1.0


def test_distances():
    assert distance(FIRST, SECOND) == pytest.approx(2 / 5)  # 2 of 5 connections moved
    assert distance(FIRST, SECOND, "jaccard") == pytest.approx(1 - 3 / 7)
    opposite = {name: ~mask for name, mask in FIRST.items()}
    for kind in ("hamming", "jaccard"):
        assert distance(FIRST, FIRST, kind) == 0.0
        assert distance(FIRST, opposite, kind) == 1.0
        assert distance({"a": rows("..")}, {"a": rows("..")}, kind) == 0.0
    assert distance({"a": rows("xx")}, {"a": rows("x.")}) == pytest.approx(1 / 3)


def test_nnstd_of_single_neurons():
    assert nnstd({"a": rows("xxx.")}, {"a": rows(".xxx")}) == (0.5, {"a": 0.5})
    assert nnstd({"a": rows("xx..")}, {"a": rows("..xx")})[0] == 1.0
    assert nnstd({"a": rows("....")}, {"a": rows("....")})[0] == 0.0
    assert nnstd({"a": rows("....")}, {"a": rows("x...")})[0] == 1.0


def test_nnstd_reorders_the_next_layer_by_the_match():
    first = {"a": rows("xx.", "..x"), "b": rows("x.")}
    swapped = {"a": rows("..x", "xx."), "b": rows(".x")}
    assert nnstd(first, swapped)[0] == 0.0
    assert nnstd(first, {"a": swapped["a"], "b": first["b"]}) == (0.5, {"a": 0.0, "b": 1.0})


@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(2, 6))
def test_nnstd_of_a_permuted_copy_is_zero(seed, hidden, out):
    generator = torch.Generator().manual_seed(seed)

    def distinct(units, inputs):
        """A mask with different rows: the bits of different numbers."""
        numbers = torch.randperm(2**inputs - 1, generator=generator)[:units] + 1
        return (numbers[:, None] >> torch.arange(inputs)) & 1 == 1

    first = {"a": distinct(hidden, 5), "b": distinct(out, max(hidden, 3))[:, :hidden]}
    one, two = (torch.randperm(n, generator=generator) for n in (hidden, out))
    second = {"a": first["a"][one], "b": first["b"][:, one][two]}
    assert nnstd(first, second) == (0.0, {"a": 0.0, "b": 0.0})
    if not torch.equal(first["a"], second["a"]):
        assert distance(first, second) > 0


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"a": rows("xx", "xx")}, "'a'.*one shape"),
        ({"a": rows("xx."), "b": rows("xx")}, "'b': 2 inputs follow 1 outputs"),
    ],
)
def test_nnstd_refuses_what_is_no_chain(second, words):
    first = {"a": rows("xx."), "b": rows("xx")}
    with pytest.raises(ValueError, match=words):
        nnstd({name: first[name] for name in second}, second)


def test_dead_units_and_fan_in_of_a_linear_layer():
    model = nn.Sequential(nn.Linear(4, 3))
    masks = {"0.weight": rows("xx..", "....", "x...")}
    assert dead_units(model, masks) == {"0.weight": DeadUnits(1, 2, 3, 4)}
    spread = math.sqrt(((2 - 1) ** 2 + 1 + 0) / 3)
    assert fan_in(model, masks)["0.weight"] == FanIn(1.0, pytest.approx(spread), 0, 2, 4)


def connections(model, weight_shape, inputs):
    """Outputs that an input reaches through a weight, by running each weight alone."""
    table = {}
    for index in range(math.prod(weight_shape)):
        weight = torch.zeros(math.prod(weight_shape))
        weight[index] = 1.0
        with torch.no_grad():
            model[0].weight.copy_(weight.view(weight_shape))
            for source in range(inputs):
                x = torch.zeros(1, inputs, 4, 4)
                x[0, source] = 1.0
                table[index, source] = model(x)[0].flatten(1).any(1)
    return table


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("groups", [1, 2])
def test_units_of_convolutions_by_what_reaches_what(kind, groups):
    """Dead units found by pushing one input channel at a time through single weights."""
    model = nn.Sequential(kind(4, 6, 2, groups=groups, bias=False))
    shape = model[0].weight.shape
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(groups)) < 0.25
    reach = connections(model, shape, inputs=4)
    fed, feeds = torch.zeros(6, dtype=torch.long), torch.zeros(4, dtype=torch.bool)
    for index in mask.view(-1).nonzero().view(-1).tolist():
        for source in range(4):
            fed += reach[index, source]
            feeds[source] |= bool(reach[index, source].any())
    found = dead_units(model, {"0.weight": mask})["0.weight"]
    assert found == DeadUnits(int((fed == 0).sum()), int((~feeds).sum()), 6, 4)
    degrees = fan_in(model, {"0.weight": mask})["0.weight"]
    assert (degrees.low, degrees.high) == (int(fed.min()), int(fed.max()))
    assert degrees.mean == pytest.approx(int(mask.sum()) / 6)
    assert degrees.dense == 4 // groups * 4


def test_dead_units_of_the_grouped_convolution_drawn_by_hand():
    model = nn.Sequential(nn.Conv2d(4, 2, 1, groups=2))
    masks = {"0.weight": rows("x.", "..").view(2, 2, 1, 1)}  # output 1, inputs 1, 2 and 3 cut off
    assert dead_units(model, masks)["0.weight"] == DeadUnits(1, 3, 2, 4)
