"""Cannistraci-Hebb training, against a walk over all paths.

The walk follows CH_scores_new_v2.cpp of github.com/biomedical-cybernetics/
Cannistraci-Hebb-training: all paths of three links between two nodes of the whole graph, the local
community they make up, and internal and external degrees within it. The node-based scores and
relative importance follow dst_scheduler.py there.
"""

import math
from collections import Counter
from itertools import product

import pytest
import torch
from torch import nn

from sparsebench.errors import UserError
from sparsebench.library import method
from sparsebench.sparsity import Session
from sparsebench.sparsity.cannistraci import (
    ch3_l3,
    ch3_l3_soft,
    magnitude_soft,
    node_scores,
    path_scores,
    relative_importance,
)
from sparsebench.sparsity.scores import Layer


def links(rows):
    return torch.tensor(rows, dtype=torch.bool)


def layer(mask, weight=None, seed=0, **seen):
    return Layer(
        torch.zeros(mask.numel()) if weight is None else weight.reshape(-1),
        torch.Generator().manual_seed(seed),
        seen={name: torch.tensor(value) for name, value in seen.items()},
        shape=tuple(mask.shape),
        factor=mask.float(),
    )


def walked(mask, internal):
    """Scores by going along every path."""
    outputs, inputs = mask.shape
    neighbours = {("v", v): {("u", u) for u in range(inputs) if mask[v, u]} for v in range(outputs)}
    neighbours |= {
        ("u", u): {("v", v) for v in range(outputs) if mask[v, u]} for u in range(inputs)
    }
    scores = torch.zeros(outputs, inputs, dtype=torch.float64)
    for v, u in product(range(outputs), range(inputs)):
        s, d = ("u", u), ("v", v)
        if mask[v, u]:
            continue
        paths = [(a, b) for a in neighbours[s] for b in neighbours[a] & neighbours[d] if b != s]
        community = {node for path in paths for node in path}
        inside = {x: len(neighbours[x] & community) for x in community}
        outside = {x: len(neighbours[x] - community - {s, d}) for x in community}
        for a, b in paths:
            value = 1 / math.sqrt((1 + outside[a]) * (1 + outside[b]))
            if internal:
                value *= math.sqrt((1 + inside[a]) * (1 + inside[b]))
            scores[v, u] += value
    return scores


def by_nodes(mask, internal):
    """The matrix form of the official code."""
    m = mask.double()
    total = torch.zeros_like(m)
    for side, x in (("out", m), ("in", m.T)):
        shared = x @ x.T
        elsewhere = (x.sum(1) - shared) * (shared != 0)
        elsewhere[elsewhere == 0] = 1
        value = 1 / elsewhere * ((shared + (shared != 0)) if internal else (shared != 0))
        found = value @ x
        total += found if side == "out" else found.T
    return total * ~mask


def random_mask(outputs, inputs, density, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(outputs, inputs, generator=generator) < density


def test_scores_by_hand():
    # outputs v1, v2; inputs u1, u2: u1-v1, u2-v1, u2-v2
    path = links([[1, 1], [0, 1]])
    assert path_scores(path).tolist() == [[0, 0], [1, 0]]
    more = links([[1, 1, 1], [0, 1, 0]])  # and u3-v1: v1 has a link elsewhere
    assert path_scores(more)[1].tolist() == pytest.approx([0.5**0.5, 0, 0.5**0.5])
    # both nodes of the only path have one link inside: sqrt(2 x 2) = 2
    assert float(path_scores(path, internal=True)[1, 0]) == pytest.approx(2)
    apart = links([[1, 0], [0, 1]])
    assert not path_scores(apart).any()


SHAPES = [(7, 9, 0.3), (12, 5, 0.4), (10, 30, 0.1), (30, 10, 0.15), (6, 6, 0.7), (20, 20, 0.05)]


@pytest.mark.parametrize("internal", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_scores_are_those_of_all_paths(shape, internal):
    for seed in range(3):
        mask = random_mask(*shape, seed)
        found = path_scores(mask, internal=internal)
        torch.testing.assert_close(found, walked(mask, internal), rtol=1e-12, atol=0)


@pytest.mark.parametrize("internal", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_node_scores_are_those_of_the_official_code(shape, internal):
    mask = random_mask(*shape, 1)
    torch.testing.assert_close(
        node_scores(mask, internal=internal), by_nodes(mask, internal), rtol=1e-12, atol=0
    )


def session_of(weight, name, mask, **dials):
    net = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    net.weight.data.copy_(weight)
    engine = method(
        name, sparsity=0.8, every="1it", drop_schedule="constant", drop_fraction=0.3, **dials
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    session = Session(engine, net, optimizer, total_steps=4, seed=0)
    session.masks.set("weight", mask)
    net.weight.data.copy_(weight)
    session.masks.apply()
    return session, net


def step(session, net):
    net.weight.grad = torch.zeros_like(net.weight)
    assert not session.method.wants_dense_gradient(session.state)
    session.after_backward()
    return session.after_step()


@pytest.mark.parametrize("seed", range(4))
def test_masks_of_an_update_are_those_of_the_official_steps(seed):
    generator = torch.Generator().manual_seed(seed)
    mask = random_mask(12, 15, 0.2, seed)
    weight = torch.randn(12, 15, generator=generator) * mask
    session, net = session_of(weight, "cht", mask)
    step(session, net)
    # official: remove the smallest, score the missing links of what is left, take the best
    number = math.floor(0.3 * int(mask.sum()))
    present = sorted(
        mask.view(-1).nonzero().view(-1).tolist(), key=lambda i: abs(weight.view(-1)[i])
    )
    left = mask.clone().view(-1)
    left[present[:number]] = False
    scores = walked(left.view(12, 15), internal=False).view(-1)
    assert int((scores > 0).sum()) > number
    order = sorted(range(180), key=lambda i: (-round(float(scores[i]), 9), i))
    left[order[:number]] = True
    assert torch.equal(session.masks["weight"].view(-1), left)
    back = left & mask.view(-1)
    assert torch.equal(net.weight.detach().view(-1)[back], weight.view(-1)[back])


def test_what_has_no_path_is_grown_at_random_after_all_that_has():
    mask = links([[1, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0]])
    drawn = Counter()
    for seed in range(40):
        scores = ch3_l3(layer(mask, seed=seed))
        free = [i for i in range(18) if not mask.view(-1)[i]]
        best = sorted(free, key=lambda i: -float(scores[i]))
        assert best[0] == 6  # the only one with a path
        drawn[best[1]] += 1
    assert len(drawn) > 8


def test_soft_growth_draws_in_proportion_to_the_scores():
    mask = links([[1, 1, 1, 0], [0, 1, 0, 1], [0, 1, 1, 0]])
    scores = path_scores(mask).view(-1)
    free = ~mask.view(-1)
    first = Counter()
    for seed in range(3000):
        keys = ch3_l3_soft(layer(mask, seed=seed)).masked_fill(~free, -math.inf)
        first[int(keys.argmax())] += 1
    for i in free.nonzero().view(-1).tolist():
        share = float(scores[i] / scores.sum())
        assert abs(first[i] / 3000 - share) < 4 * math.sqrt(share * (1 - share) / 3000) + 1e-12


def test_soft_removal_keeps_by_magnitude_to_a_power():
    weight, mask = torch.tensor([[1.0, -2.0, 0.0]]), links([[1, 1, 0]])
    for power in (1.0, 3.0):
        kept = Counter()
        for seed in range(2000):
            kept[int(magnitude_soft(layer(mask, weight, seed, temperature=power)).argmax())] += 1
        share = 2**power / (1 + 2**power)
        assert kept[2] == 0
        assert abs(kept[1] / 2000 - share) < 4 * math.sqrt(share * (1 - share) / 2000)


def test_temperature_rises_from_1_to_3():
    session, net = session_of(torch.ones(4, 5), "cht_soft", random_mask(4, 5, 0.2, 0))
    seen = session.method.observers["temperature"]
    found = [float(seen.values(session.state)["weight"])]
    for _ in range(4):
        session.state.step += 1
        found.append(float(seen.values(session.state)["weight"]))
    assert found == [1, 1.5, 2, 2.5, 3]


def test_relative_importance():
    weight = torch.tensor([[1.0, -3.0], [1.0, 0.0]])
    found = relative_importance(layer(weight != 0, weight))
    assert found.tolist() == pytest.approx([1 / 2 + 1 / 4, 1 + 3 / 4, 1 / 2 + 1, 0])
    assert not relative_importance(layer(links([[0, 0]]), torch.zeros(1, 2))).any()


def test_a_convolution_is_a_graph_of_outputs_and_taps():
    mask = random_mask(6, 2 * 9, 0.3, 0)
    flat = ch3_l3(layer(mask))
    assert torch.equal(ch3_l3(layer(mask.view(6, 2, 3, 3))), flat)


def begin(**dials):
    net = nn.Sequential(nn.Linear(40, 20), nn.Linear(20, 10), nn.Conv2d(3, 8, 3))
    engine = method("static", sparsity=0.8, initial="small_world", **dials)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    return Session(engine, net, optimizer, total_steps=4, seed=0)


def test_a_small_world_is_a_lattice_with_some_links_moved():
    masks = begin(distribution="strict_uniform").masks
    assert masks.nonzeros == {"0.weight": 160, "1.weight": 40, "2.weight": 43}
    mask = masks["0.weight"]  # each of 40 inputs has 4 outputs around half its number
    near = sum(min((v - u // 2) % 20, (u // 2 - v) % 20) <= 2 for v, u in mask.nonzero().tolist())
    assert 100 <= near < 160  # three in four, and those that were moved nearby


def test_a_small_world_has_counts_of_layers():
    with pytest.raises(UserError, match=r"method.initial_scope=global: .* layer by layer"):
        begin(initial_scope="global")
