"""Choosing within and across layers, sharing out, and random picks: exact whatever the scores."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebench.sparsity import scores, updates
from sparsebench.sparsity.scores import Layer
from sparsebench.sparsity.structure import Unstructured

NAMES = "abcde"
VALUES = st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1.0, 1.0, 2.0, -3.0])


def weight(layer: Layer) -> torch.Tensor:
    return layer.weight


@st.composite
def networks(draw):
    """Layers of odd scores, each with the units that may be chosen."""
    layers, among = {}, {}
    for name in NAMES[: draw(st.integers(1, 4))]:
        values = draw(st.lists(VALUES, min_size=1, max_size=12))
        allowed = draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
        layers[name] = Layer(torch.tensor(values), torch.Generator())
        among[name] = torch.tensor(allowed)
    return layers, among


def ranked(layers, among):
    """All allowed units as (layer, position), best first, by a plain sort."""
    units = [(n, i) for n, allowed in among.items() for i in allowed.nonzero().view(-1).tolist()]
    order = {unit: place for place, unit in enumerate(units)}

    def key(unit):
        value = float(layers[unit[0]].weight[unit[1]])
        return math.inf if math.isnan(value) else -value, order[unit]

    return sorted(units, key=key)


def listed(chosen):
    return sorted((name, i) for name, units in chosen.items() for i in units.tolist())


@given(networks(), st.data())
def test_all_layers_compete(network, data):
    layers, among = network
    units = ranked(layers, among)
    k = data.draw(st.integers(0, len(units)))
    best = updates.best(layers, among, weight, k, Unstructured())
    worst = updates.worst(layers, among, weight, len(units) - k, Unstructured())
    assert listed(best) == sorted(units[:k])
    assert listed(worst) == sorted(units[k:])
    assert list(best) == list(worst) == list(layers)


@given(networks(), st.data())
def test_each_layer_has_its_count(network, data):
    layers, among = network
    room = {name: int(allowed.sum()) for name, allowed in among.items()}
    counts = {name: data.draw(st.integers(0, free)) for name, free in room.items()}
    best = updates.best(layers, among, weight, counts, Unstructured())
    rest = {name: free - counts[name] for name, free in room.items()}
    worst = updates.worst(layers, among, weight, rest, Unstructured())
    for name in layers:
        units = ranked({name: layers[name]}, {name: among[name]})
        assert listed({name: best[name]}) == sorted(units[: counts[name]])
        assert listed({name: worst[name]}) == sorted(units[counts[name] :])


def test_layers_of_two_types_compete_exactly():
    layers = {
        "half": Layer(torch.tensor([1.0, 3.0], dtype=torch.bfloat16), torch.Generator()),
        "single": Layer(torch.tensor([1.0 + 1e-6, 2.0]), torch.Generator()),
    }
    among = {name: torch.ones(2, dtype=torch.bool) for name in layers}
    best = updates.best(layers, among, weight, 3, Unstructured())
    assert {n: u.tolist() for n, u in best.items()} == {"half": [1], "single": [0, 1]}


# --- random picks ----------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.integers(1, 300), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**32))
def test_random_pick_is_exact(n, density, share, seed):
    generator = torch.Generator().manual_seed(seed)
    among = torch.rand(n, generator=generator) < density
    k = int(share * int(among.sum()))
    picked = scores.random.pick(Layer(torch.zeros(n), generator), among, k)
    assert picked.numel() == k
    assert picked.tolist() == sorted(set(picked.tolist()))
    assert among[picked].all()


@pytest.mark.parametrize("k", [1, 3, 8])  # few are drawn, many are shuffled
def test_random_pick_is_uniform(k):
    generator = torch.Generator().manual_seed(0)
    among = torch.arange(24) % 3 != 0  # 16 of 24
    hits = torch.zeros(24)
    rounds = 4000
    for _ in range(rounds):
        hits[scores.random.pick(Layer(torch.zeros(24), generator), among, k)] += 1
    assert hits[~among].sum() == 0
    expected, deviation = rounds * k / 16, math.sqrt(rounds * k / 16 * (1 - k / 16))
    assert ((hits[among] - expected).abs() < 5 * deviation).all()


# --- sharing out -----------------------------------------------------------------------------

SHARE = st.sampled_from([0.0, 5e-324, 1e-300, 1.0, 1e300]) | st.floats(0, 1e6)


@given(st.lists(st.tuples(SHARE, st.integers(0, 50)), min_size=1, max_size=8), st.data())
def test_share_out_is_exact(parts, data):
    shares = {str(i): share for i, (share, _) in enumerate(parts)}
    room = {str(i): free for i, (_, free) in enumerate(parts)}
    total = data.draw(st.integers(0, sum(room.values())))
    given_ = updates.share_out(total, shares, room)
    assert sum(given_.values()) == total
    assert all(0 <= given_[name] <= room[name] for name in shares)
    assert updates.share_out(total, shares, room) == given_


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=6), st.integers(0, 10**6))
def test_share_out_is_in_proportion_where_there_is_room(parts, total):
    shares = {str(i): float(part) for i, part in enumerate(parts)}
    given_ = updates.share_out(total, shares, dict.fromkeys(shares, total))
    weights = parts if sum(parts) else [1] * len(parts)
    for name, part in zip(shares, weights, strict=True):
        assert abs(given_[name] - Fraction(total * part, sum(weights))) < 1


def test_share_out_passes_on_what_does_not_fit():
    shares, room = {"a": 6.0, "b": 3.0, "c": 1.0}, {"a": 10, "b": 100, "c": 100}
    # 60:30:10 of 100, but a holds 10; its 50 go 3:1, which is 37.5 and 12.5: the tie to b
    assert updates.share_out(100, shares, room) == {"a": 10, "b": 68, "c": 22}
    assert updates.share_out(5, {"a": 0.0, "b": 0.0}, {"a": 2, "b": 8}) == {"a": 1, "b": 4}
    with pytest.raises(ValueError, match="3 connections for 2 free positions"):
        updates.share_out(3, {"a": 1.0}, {"a": 2})


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=8))
def test_one_way(pairs):
    wanted = {str(i): new for i, (new, _) in enumerate(pairs)}
    current = {str(i): old for i, (_, old) in enumerate(pairs)}
    counts = updates.one_way(wanted, current)
    assert sum(counts.values()) == sum(wanted.values())
    falls = sum(wanted.values()) <= sum(current.values())
    for name, old in current.items():
        assert counts[name] <= old if falls else counts[name] >= old
    if all((wanted[n] <= current[n]) if falls else (wanted[n] >= current[n]) for n in wanted):
        assert counts == wanted
