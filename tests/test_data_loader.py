"""The order of the samples: a permutation of (seed, epoch), shared out over ranks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebench.data import EvalLoader, Recipe, TensorImages, TrainLoader
from sparsebench.errors import UserError


def numbered(samples, recipe=None):
    """Samples whose label is their number."""
    images = torch.zeros(samples, 1, 4, 4, dtype=torch.uint8)
    images += torch.arange(samples, dtype=torch.uint8).view(-1, 1, 1, 1)
    return TensorImages.of(images, torch.arange(samples), recipe)


def labels(batches):
    return [y.tolist() for _, y in batches]


def flat(batches):
    return [label for batch in batches for label in batch]


def test_an_epoch_visits_every_sample_once_in_a_new_order():
    loader = TrainLoader(numbered(60), 20, seed=4)
    epochs = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        batches = labels(loader)
        assert [len(batch) for batch in batches] == [20, 20, 20]
        epochs.append(flat(batches))
    assert all(sorted(epoch) == list(range(60)) for epoch in epochs)
    assert epochs[0] != list(range(60))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_order_is_a_function_of_seed_and_epoch():
    again = TrainLoader(numbered(60), 20, seed=4)
    first = labels(again.batches(2))
    torch.manual_seed(3)
    assert labels(TrainLoader(numbered(60), 20, seed=4).batches(2)) == first
    assert labels(TrainLoader(numbered(60), 20, seed=5).batches(2)) != first
    assert flat(labels(TrainLoader(numbered(60), 15, seed=4).batches(2))) == flat(first)


def test_passes_without_set_epoch_move_on():
    loader = TrainLoader(numbered(30), 10, seed=0)
    seen = [labels(loader), labels(loader)]
    assert seen == [labels(loader.batches(0)), labels(loader.batches(1))]
    loader.set_epoch(0)
    assert labels(loader) == seen[0]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 40), st.booleans())
def test_ranks_share_the_batches_of_one_process(world, share, extra, drop_last):
    batch = world * share
    data = numbered(batch + extra, Recipe(pad=1, flip=True))
    whole = list(TrainLoader(data, batch, 1, drop_last=drop_last).batches(3))
    ranks = [
        list(TrainLoader(data, batch, 1, rank, world, drop_last).batches(3))
        for rank in range(world)
    ]
    kept = [pair for pair in whole if len(pair[1]) >= world]
    assert len(whole) - len(kept) <= (0 if drop_last else 1)
    for number, (x, y) in enumerate(kept):
        for rank in range(world):
            assert torch.equal(ranks[rank][number][0], x[rank::world])
            assert torch.equal(ranks[rank][number][1], y[rank::world])
    assert {len(batches) for batches in ranks} == {len(kept)}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 4))
def test_evaluation_sees_every_sample_once_in_order(samples, batch, world):
    data = numbered(samples)
    loaders = [EvalLoader(data, batch, rank, world) for rank in range(world)]
    assert flat(labels(EvalLoader(data, batch))) == list(range(samples))
    shares = [labels(loader) for loader in loaders]
    assert sorted(flat(flat(shares))) == list(range(samples))
    assert [len(loader) for loader in loaders] == [len(share) for share in shares]
    assert all(share for batches in shares for share in batches)


@pytest.mark.parametrize("drop_last, sizes", [(True, [8, 8]), (False, [8, 8, 4])])
def test_length_and_last_batch(drop_last, sizes):
    loader = TrainLoader(numbered(20), 8, seed=0, drop_last=drop_last)
    assert [len(batch) for batch in labels(loader)] == sizes
    assert len(loader) == len(sizes)


@pytest.mark.parametrize("taken", range(6))
def test_a_loaded_state_goes_on_after_the_last_batch_handed_out(taken):
    data = numbered(20, Recipe(pad=1, flip=True))
    whole = TrainLoader(data, 6, seed=2)
    expected = [batch for epoch in range(3) for batch in whole.batches(epoch)]

    first = TrainLoader(data, 6, seed=2)
    got = []
    while len(got) < taken:
        for batch in first:
            got.append(batch)
            if len(got) == taken:
                break
    second = TrainLoader(data, 6, seed=2)
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    while len(got) < len(expected):
        got.extend(second)
    for (x, y), (a, b) in zip(got, expected, strict=True):
        assert torch.equal(x, a)
        assert torch.equal(y, b)


def test_state_at_the_end_of_an_epoch_is_the_start_of_the_next():
    loader = TrainLoader(numbered(20), 10, seed=0)
    batches = iter(loader)
    next(batches)
    assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (0, 1)
    next(batches)
    assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (1, 0)


def test_looking_at_batches_moves_nothing():
    loader = TrainLoader(numbered(20), 10, seed=0)
    loader.load_state_dict({**loader.state_dict(), "epoch": 1, "batch": 1})
    state = loader.state_dict()
    list(loader.batches(0))
    assert loader.state_dict() == state
    assert labels(loader) == labels(loader.batches(1, start=1))


def test_another_epoch_starts_at_its_first_batch():
    loader = TrainLoader(numbered(20), 10, seed=0)
    loader.load_state_dict({**loader.state_dict(), "epoch": 1, "batch": 1})
    loader.set_epoch(2)
    assert labels(loader) == labels(loader.batches(2))


@pytest.mark.parametrize("key, other", [("seed", 1), ("batch_size", 5), ("samples", 30)])
def test_a_state_of_another_order_is_refused(key, other):
    settings_ = {"seed": 0, "batch_size": 10, "samples": 20}
    state = TrainLoader(numbered(20), 10, seed=0).state_dict()
    changed = {**settings_, key: other}
    loader = TrainLoader(numbered(changed["samples"]), changed["batch_size"], changed["seed"])
    with pytest.raises(UserError, match=f"{key}={other}: .* {settings_[key]}"):
        loader.load_state_dict(state)


def test_no_batch_is_refused():
    with pytest.raises(UserError, match="batch_size=21: .* only 20 images"):
        TrainLoader(numbered(20), 21, seed=0)
    assert len(TrainLoader(numbered(20), 21, seed=0, drop_last=False)) == 1
    for make in (lambda: TrainLoader(numbered(5), 0, 0), lambda: EvalLoader(numbered(5), -1)):
        with pytest.raises(UserError, match="batch_size=(0|-1): must be at least 1"):
            make()


def test_unequal_shares_are_refused():
    with pytest.raises(UserError, match="batch_size=10: cannot be shared by 4 devices"):
        TrainLoader(numbered(20), 10, seed=0, world_size=4)


def test_the_global_generator_is_not_touched():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    loader = TrainLoader(numbered(20, Recipe(pad=1, flip=True)), 5, seed=0)
    list(loader)
    list(EvalLoader(loader.images, 5))
    assert torch.equal(torch.get_rng_state(), before)
