"""The reservoir and the losses of replay, by hand."""

import math
from itertools import combinations, product

import pytest
import torch

from sparsebench.config.schema import ReplayConfig
from sparsebench.continual import streams
from sparsebench.continual.buffer import Reservoir, slots
from sparsebench.continual.replay import Replay, cross_entropy
from sparsebench.data.augment import Recipe

# --- the reservoir ----------------------------------------------------------------------------


def test_each_pair_of_four_is_kept_in_two_of_the_twelve_ways():
    found = dict.fromkeys(combinations(range(4), 2), 0)
    for third, fourth in product(range(3), range(4)):
        held = [0, 1]
        for slot, item in slots([0, 0, third, fourth], 0, 2).items():
            held[slot] = item
        found[tuple(sorted(held))] += 1
    assert set(found.values()) == {2}


def test_every_item_is_as_likely_to_be_kept():
    size, items, runs = 50, 1000, 2000
    counts = torch.zeros(items)
    for seed in range(runs):
        reservoir = Reservoir(size, seed)
        for part in torch.arange(items).split(125):
            reservoir.add(y=part)
        counts[reservoir.kept["y"]] += 1
    mean = runs * size / items
    assert counts.mean() == mean
    variance = mean * (1 - size / items)
    chi2 = float(((counts - mean) ** 2 / variance).sum() * (items - 1) / items)
    assert abs(chi2 - (items - 1)) < 4 * math.sqrt(2 * (items - 1))


def test_a_reservoir_that_is_not_full_keeps_the_order_and_one_that_is_its_size():
    reservoir = Reservoir(6, 0)
    reservoir.add(y=torch.arange(4))
    assert reservoir.kept["y"][: len(reservoir)].tolist() == [0, 1, 2, 3]
    before = reservoir.bytes
    for _ in range(20):
        reservoir.add(y=torch.arange(100))
    assert (len(reservoir), reservoir.seen, reservoir.bytes) == (6, 2004, before)


def test_a_resumed_reservoir_goes_on_as_the_other():
    whole, begun, resumed = Reservoir(20, 3), Reservoir(20, 3), Reservoir(20, 99)
    for part in torch.arange(600).split(50):
        whole.add(y=part)
        begun.add(y=part)
    resumed.load_state_dict(begun.state_dict())
    for part in torch.arange(600, 1000).split(50):
        whole.add(y=part)
        resumed.add(y=part)
    assert torch.equal(whole.kept["y"], resumed.kept["y"])
    assert torch.equal(whole.sample(7)["y"], resumed.sample(7)["y"])


def test_a_draw_has_different_items_and_all_if_there_are_fewer():
    reservoir = Reservoir(30, 0)
    reservoir.add(y=torch.arange(10))
    assert sorted(reservoir.sample(50)["y"].tolist()) == list(range(10))
    assert len(set(reservoir.sample(8)["y"].tolist())) == 8


# --- losses -----------------------------------------------------------------------------------


def test_outputs_of_other_tasks_get_exactly_no_gradient():
    logits = torch.randn(5, 6, requires_grad=True)
    allowed = torch.tensor([True, True, False, False, False, False])
    cross_entropy(logits, torch.tensor([0, 1, 1, 0, 1]), allowed).mean().backward()
    assert torch.equal(logits.grad[:, 2:], torch.zeros(5, 4))
    own = torch.nn.functional.cross_entropy(logits[:, :2], torch.tensor([0, 1, 1, 0, 1]))
    masked = cross_entropy(logits, torch.tensor([0, 1, 1, 0, 1]), allowed).mean()
    assert torch.allclose(masked, own, atol=1e-6)


def a_batch(x, y):
    count = len(y)
    ones = torch.ones(count, dtype=torch.bool)
    return streams.Batch(x, torch.tensor(y), torch.zeros(count).long(), x.clone(), ones)


def replay_of(kind, **dials):
    return Replay(ReplayConfig(name=kind, **dials), 2, Recipe(), 0)


def test_der_pulls_towards_the_logits_that_were_kept():
    replay = replay_of("der", size=2, alpha=0.3)
    replay.buffer.add(
        images=torch.zeros(2, 2), y=torch.tensor([0, 1]), logits=torch.tensor([[1.0, 0], [3, 2]])
    )
    given = iter([torch.tensor([[1.0, 2.0]]), None])
    fixed = {}

    def net(x):  # first the batch, then the two kept samples, in the order they were drawn in
        found = next(given)
        if found is not None:
            return found
        return fixed["h"]

    order = Reservoir(2, 0)
    order.load_state_dict(replay.buffer.state_dict())
    drawn = order.sample(2)["y"]
    fixed["h"] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[drawn]
    everything = torch.ones(2, dtype=torch.bool)
    batch = a_batch(torch.zeros(1, 2), [1])
    loss, _ = replay.loss(net, batch, everything, everything)
    alone = cross_entropy(torch.tensor([[1.0, 2.0]]), torch.tensor([1]), everything).mean()
    assert float(loss - alone) == pytest.approx(0.6, abs=1e-6)
    assert replay.presented == 2


@pytest.mark.parametrize(("kind", "extra"), [("er", 2), ("er_ace", 2), ("der", 2), ("derpp", 4)])
def test_what_replay_presents_and_how_its_terms_add_up(kind, extra):
    torch.manual_seed(0)
    weight, everything = torch.randn(3, 4), torch.ones(4, dtype=torch.bool)
    first, second = a_batch(torch.randn(2, 3), [0, 1]), a_batch(torch.randn(2, 3), [2, 3])
    replay = replay_of(kind, size=2, alpha=0.5, beta=2.0)

    def net(x):
        return x @ weight

    def ce(x, y, allowed=everything):
        return cross_entropy(net(x), torch.tensor(y), allowed).mean()

    seen_classes = torch.tensor([True, True, False, False])
    before, logits = replay.loss(net, first, everything, everything)
    assert torch.equal(logits, net(first.x))
    assert before == ce(first.x, [0, 1], seen_classes if kind == "er_ace" else everything)
    assert replay.presented == 0
    loss, _ = replay.loss(net, second, everything, everything)
    assert replay.presented == extra
    old, new = ce(first.x, [0, 1]), ce(second.x, [2, 3])
    if kind == "er":
        expected = (old + new) / 2
    elif kind == "er_ace":
        expected = old + ce(second.x, [2, 3], ~seen_classes)
    else:  # the network has not moved, so the kept logits are met
        expected = new + (2.0 * old if kind == "derpp" else 0.0)
    assert float(loss) == pytest.approx(float(expected), abs=1e-6)


def test_a_buffer_is_shown_first_presentations_only_unless_asked():
    batch = a_batch(torch.zeros(4, 3), [0, 1, 0, 1])
    batch = batch._replace(fresh=torch.tensor([True, False, True, False]))
    everything = torch.ones(2, dtype=torch.bool)
    for when, seen in (("first_epoch", 2), ("every_batch", 4)):
        replay = replay_of("er", size=8, when=when)
        replay.loss(lambda x: x[:, :2], batch, everything, everything)
        assert replay.buffer.seen == seen


def test_er_may_add_the_two_means_instead():
    torch.manual_seed(0)
    weight, everything = torch.randn(3, 4), torch.ones(4, dtype=torch.bool)
    first, second = a_batch(torch.randn(2, 3), [0, 1]), a_batch(torch.randn(2, 3), [2, 3])
    together, apart = (replay_of("er", size=2, er=er) for er in ("together", "apart"))
    seen = []

    def net(x):
        seen.append(len(x))
        return x @ weight

    for replay in (together, apart):
        replay.loss(net, first, everything, everything)
    found = [replay.loss(net, second, everything, everything)[0] for replay in (together, apart)]
    assert float(found[1]) == pytest.approx(2 * float(found[0]), abs=1e-6)
    assert seen == [2, 2, 4, 2, 2]


def test_all_that_is_kept_comes_once_as_it_would_be_tested():
    replay = Replay(ReplayConfig(name="er", size=5), 2, Recipe(scale=4.0, flip=True), 0)
    assert list(replay.batches(0)) == []
    images = torch.arange(15, dtype=torch.uint8).view(5, 3)
    replay.buffer.add(images=images, y=torch.arange(5))
    before = replay.buffer.generator.get_state()
    found = list(replay.batches(7))
    assert [len(y) for _, y in found] == [2, 2, 1]
    x, y = (torch.cat(parts) for parts in zip(*found, strict=True))
    assert sorted(y.tolist()) == list(range(5))
    assert torch.equal(x, images[y].float() / 4)
    assert torch.equal(before, replay.buffer.generator.get_state())
    assert torch.equal(y, torch.cat([y for _, y in replay.batches(7)]))
    assert not torch.equal(y, torch.cat([y for _, y in replay.batches(8)]))
