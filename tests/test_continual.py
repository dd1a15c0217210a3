"""Streams and metrics of continual learning, by hand."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from sparsebench.config.compose import compose
from sparsebench.config.schema import StreamConfig
from sparsebench.continual import metrics, streams
from sparsebench.continual.order import tasks_of
from sparsebench.continual.record import Record
from sparsebench.continual.transforms import transforms
from sparsebench.data import EvalLoader, TrainLoader, load
from sparsebench.errors import UserError
from sparsebench.sparsity.masks import Masks

R = [[90, 50, 55, 48], [70, 88, 52, 50], [60, 90, 92, 55], [50, 75, 85, 94]]
DIGITS = {"name": "digits", "_target_": "sparsebench.data.builtin.digits", "validation": 0.1}


def stream_of(epochs=2, validation=0.1, keep=False, joint=False, **dials):
    config = StreamConfig(name="split", **dials)
    sets = load({**DIGITS, "validation": validation})
    return streams.build(config, sets, epochs, keep=keep, joint=joint)


# --- metrics ----------------------------------------------------------------------------------


def test_figures_of_a_matrix_by_hand():
    found = metrics.figures(R, [50, 49, 51, 50], [1, 1, 1, 1])
    expected = {
        "acc": 76.0, "acc_weighted": 76.0, "average_incremental_accuracy": 81.41667,
        "learning_accuracy": 91.0, "bwt": -20.0, "bwt_tri": -18.0, "remembering": 0.82,
        "fwt": 2.33333, "fwt_tri": 51.66667, "forgetting": 20.66667,
        "forgetting_clipped": 20.66667,
    }  # fmt: skip
    assert found == pytest.approx(expected, abs=1e-5)
    assert found["acc"] == pytest.approx(found["learning_accuracy"] + found["bwt"] * 3 / 4)
    assert metrics.transfer_by_task(R) == [0, -20, -14, -20]
    assert metrics.forward_rows(R) == pytest.approx(52.33333, abs=1e-5)


def test_a_task_that_the_last_one_made_better():
    better = [[90, 0], [95, 80]]
    assert metrics.backward_transfer(better) == 5
    assert metrics.forgetting(better) == -5
    assert metrics.forgetting_clipped(better) == 0


def test_one_task_has_an_accuracy_and_nothing_else_between_tasks():
    found = metrics.figures([[80.0]], [50.0], [7])
    assert found["acc"] == found["learning_accuracy"] == 80
    for name in ("bwt", "bwt_tri", "fwt", "fwt_tri", "forgetting", "forgetting_clipped"):
        assert found[name] is None


def test_what_was_not_measured_gives_no_figure():
    seen_only = [[row[j] if j <= i else None for j in range(4)] for i, row in enumerate(R)]
    found = metrics.figures(seen_only, [None] * 4, [1, 2, 3, 4])
    assert (found["fwt"], found["fwt_tri"]) == (None, None)
    assert found["bwt"] == -20
    assert found["forgetting"] == pytest.approx(20.66667, abs=1e-5)
    assert found["acc_weighted"] == pytest.approx((50 + 150 + 255 + 376) / 10)
    joint = metrics.figures([[None] * 4] * 3 + [R[3]], [None] * 4, [1] * 4)
    assert joint["acc"] == 76
    assert {joint[k] for k in joint if k not in ("acc", "acc_weighted")} == {None}


def test_against_other_networks():
    assert metrics.intransigence(R, [92, 90, 92, 94]) == 1.0
    assert metrics.transfer_from_scratch(R, [88, 88, 90, 94]) == 1.0
    assert metrics.capacity(0.0, 10, 0.78) == pytest.approx(6.875)


# --- streams ----------------------------------------------------------------------------------


def test_split_digits_has_five_disjoint_tasks_of_all_data():
    stream = stream_of(validation=0)
    assert stream.classes == ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))
    train = stream.data.train
    assert sum(len(part) for part in train.parts) == 1437
    assert sum(len(test) for test in stream.tests) == len(stream.data.test) == 360
    assert (len(train), stream.outputs) == (1437 // 5, 10)
    for task, part in enumerate(train.parts):
        assert set(part.outputs[part.images.labels].tolist()) == {2 * task, 2 * task + 1}
    rows = torch.cat([part.images.rows for part in train.parts])
    assert len(rows.unique()) == 1437


def test_an_epoch_shows_one_task_and_is_as_long_for_each():
    stream = stream_of(epochs=3, validation=0)
    loader = TrainLoader(stream.data.train, 32, seed=1)
    for epoch in range(15):
        batches = list(loader.batches(epoch))
        assert len(batches) == 1437 // 5 // 32
        assert {int(t) for batch in batches for t in batch.task} == {epoch // 3}
        fresh = torch.cat([batch.fresh for batch in batches])
        assert not fresh.any() if epoch % 3 else fresh.float().mean() > 0.9
    again = list(TrainLoader(stream.data.train, 32, seed=1).batches(7))
    for one, other in zip(loader.batches(7), again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_fresh_samples_of_an_epoch_are_shown_once():
    stream = stream_of(validation=0, keep=True)
    for task, part in enumerate(stream.data.train.parts):
        batches = list(TrainLoader(stream.data.train, 7, seed=0).batches(2 * task))
        fresh = torch.cat([b.stored[b.fresh] for b in batches]).flatten(1)
        pool = part.images.images.flatten(1)
        assert len(fresh) <= len(pool)
        same = torch.unique(pool, dim=0, return_counts=True)[1]
        assert len(torch.unique(fresh, dim=0)) >= len(fresh) - int((same - 1).sum())


def test_the_order_of_classes_has_a_seed_of_its_own_and_changes_nothing_else():
    plain, other = stream_of(), stream_of(class_order_seed=3)
    assert other.classes == stream_of(class_order_seed=3).classes != plain.classes
    assert sorted(c for own in other.classes for c in own) == list(range(10))

    def held(stream):
        return torch.cat([part.images.rows for part in stream.data.validation.parts]).sort().values

    assert torch.equal(held(plain), held(other))
    assert len(plain.data.train) == len(other.data.train)
    assert tasks_of(StreamConfig(class_order_seed=3), 10) == other.classes
    whole = tasks_of(StreamConfig(class_order_seed=3, shuffle="tasks"), 10)
    assert sorted(whole) == sorted(plain.classes)
    assert whole != plain.classes


def test_superclasses_stay_together_whatever_their_order():
    config = compose(["task=continual", "stream=split_cifar100_superclasses"]).stream
    plain = tasks_of(config, 100)
    assert plain[0] == (4, 30, 55, 72, 95)  # beaver, dolphin, otter, seal, whale
    assert sorted(c for own in plain for c in own) == list(range(100))
    config.class_order_seed = 1
    other = tasks_of(config, 100)
    assert other != plain
    assert set(other) == set(plain)


def test_samples_of_all_tasks_together_are_those_of_each():
    stream = stream_of(kind="rotated", tasks=3, scenario="task_il", degrees=30.0)
    joined = list(EvalLoader(stream.data.test, 97))
    for task, test in enumerate(stream.tests):
        x = torch.cat([batch.x[batch.task == task] for batch in joined])
        y = torch.cat([batch.y[batch.task == task] for batch in joined])
        alone = list(EvalLoader(test, 500))[0]
        assert torch.equal(x, alone.x)
        assert torch.equal(y, alone.y)
        assert int(y.min()) == 10 * task
    shuffled = torch.randperm(len(stream.data.test))
    x, y, task, _ = stream.data.test.cut(shuffled)
    whole = torch.cat([batch.x for batch in joined])
    assert torch.equal(x, whole[shuffled])
    assert torch.equal(task, torch.cat([batch.task for batch in joined])[shuffled])


def test_outputs_by_scenario():
    for scenario, kind, outputs in (
        ("class_il", "split", 10), ("task_il", "split", 10), ("domain_il", "split", 2),
        ("domain_il", "permuted", 10), ("task_il", "permuted", 50),
    ):  # fmt: skip
        config = StreamConfig(kind=kind, scenario=scenario)
        assert streams.outputs_of(config, 10) == outputs
    shared = stream_of(scenario="domain_il")
    assert {int(y) for batch in EvalLoader(shared.data.test, 50) for y in batch.y} == {0, 1}


def test_permuted_pixels_are_all_there_in_an_order_of_the_streams_seed():
    images = torch.arange(2 * 3 * 16).view(2, 3, 4, 4)
    config = StreamConfig(kind="permuted", tasks=2, seed=4)
    first, second = transforms(config, (3, 4, 4))
    moved = first(images)
    assert torch.equal(moved.flatten(2).sort().values, images.flatten(2))
    assert torch.equal(moved[0, 0].flatten() + 16, moved[0, 1].flatten())
    assert not torch.equal(moved, second(images))
    assert torch.equal(moved, transforms(config, (3, 4, 4))[0](images))
    other = transforms(replace(config, seed=5), (3, 4, 4))[0]
    assert not torch.equal(moved, other(images))


def test_turned_images():
    images = torch.randint(0, 255, (2, 1, 8, 8), dtype=torch.uint8)
    turns = transforms(StreamConfig(kind="rotated", tasks=3, degrees=90.0), (1, 8, 8))
    assert torch.equal(turns[0](images), images)
    assert torch.equal(turns[1](images), images.rot90(1, (2, 3)))
    assert torch.equal(turns[2](images), images.rot90(2, (2, 3)))
    drawn = transforms(StreamConfig(kind="rotated", tasks=50), (1, 8, 8))
    assert all(0 <= turn.degrees < 180 for turn in drawn)


def test_joint_training_shows_all_tasks():
    stream = stream_of(epochs=10, joint=True)
    batches = list(TrainLoader(stream.data.train, 64, seed=0).batches(0))
    assert {int(t) for batch in batches for t in batch.task} == set(range(5))


def test_validation_is_of_the_present_task_only():
    stream = stream_of()
    held = stream.data.validation
    for task in range(5):
        held.part = task
        batches = list(EvalLoader(held, 8))
        assert {int(t) for batch in batches for t in batch.task} == {task}
        assert sum(len(batch.y) for batch in batches) == len(held.parts[task])


@pytest.mark.parametrize(
    ("dials", "said"),
    [
        ({"tasks": 3}, "stream.tasks=3: 10 classes can't be shared out evenly; 1, 2, 5, 10 can"),
        ({"tasks": 20}, "stream.tasks=20"),
        ({"tasks": 10, "scenario": "task_il"}, "nothing to tell apart"),
        ({"classes": ["0", "ten"], "tasks": 1}, "stream.classes=ten: no such class"),
        ({"classes": ["0", "10"], "tasks": 1}, "stream.classes=10: no such class"),
        ({"classes": ["0", "0"], "tasks": 1}, "stream.classes=0: is named twice"),
    ],
)
def test_a_stream_that_cannot_be_is_refused(dials, said):
    with pytest.raises(UserError, match=said.replace(".", r"\.")):
        stream_of(**dials)


def test_signals_cannot_be_turned():
    with pytest.raises(UserError, match="needs images"):
        transforms(StreamConfig(kind="rotated"), (40,))


# --- what is kept of a run --------------------------------------------------------------------


def test_shares_of_the_network_by_task():
    masks = Masks({"w": torch.nn.Parameter(torch.ones(10))})
    record = Record(2)
    nothing = {name: [None, None] for name in record.matrices}
    masks.set("w", torch.arange(10) < 4)
    record.add(nothing, masks)
    masks.set("w", (torch.arange(10) >= 3) & (torch.arange(10) < 7))
    record.add(nothing, masks)
    assert record.shares[0] == {"used": 0.4, "new": 0.4, "reused": 0.0, "free": 0.6}
    assert record.shares[1] == pytest.approx({"used": 0.4, "new": 0.3, "reused": 0.1, "free": 0.3})
    other = Record(2)
    other.load_state_dict(record.state_dict())
    assert (other.shares, other.matrices) == (record.shares, record.matrices)


def test_to_know_the_task_can_never_hurt():
    masks = SimpleNamespace()
    worse = {"task_il": [50.0], "class_il": [51.0], "domain_il": [None]}
    with pytest.raises(RuntimeError, match="below"):
        Record(1).add(worse, masks)
