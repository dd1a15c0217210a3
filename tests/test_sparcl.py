"""SparCL's masks, gradients and removal of data: exact counts and choices, and whole runs."""

import csv
from types import SimpleNamespace

import pytest
import torch
from mortal_runs import OFTEN, assert_same, die, finish, home
from torch import nn

from sparsebench.config.compose import compose
from sparsebench.continual.removal import Removal, Stages, stages_of
from sparsebench.errors import UserError
from sparsebench.library import method
from sparsebench.run import run
from sparsebench.sparsity import Session
from sparsebench.sparsity.examples import Examples

OPTIONS = {"p_intra": 0.01, "gradients": "merged", "dgm": None}


def session_of(**options):
    """One layer of 1000 weights at 75 %, with SGD as in the paper: 50 epochs of one step."""
    torch.manual_seed(0)
    model = nn.Linear(100, 10, bias=False)
    engine = method("sparcl", sparsity=0.75, options={**OPTIONS, **options})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03)
    return Session(engine, model, optimizer, total_steps=50, steps_per_epoch=1, seed=0)


def batch(step, size=8):
    chance = torch.Generator().manual_seed(step)
    return torch.randn(size, 100, generator=chance), torch.randint(10, (size,), generator=chance)


def step(session):
    """One step; weights, masked gradient and mask as the update finds them."""
    model, (optimizer,) = session.state.model, session.state.optimizers
    optimizer.zero_grad()
    x, y = batch(session.state.step)
    nn.functional.cross_entropy(model(x), y).backward()
    session.after_backward()
    optimizer.step()
    found = SimpleNamespace(
        weight=model.weight.detach().clone().flatten(),
        gradient=model.weight.grad.clone().flatten(),
        mask=session.masks["weight"].flatten(),
    )
    session.after_step()
    return found


# --- masks ------------------------------------------------------------------------------------


def test_a_task_begins_wider_and_is_at_the_target_from_the_first_update_on():
    session = session_of()
    counts = [session.masks.nonzeros["weight"]]
    for _ in range(50):
        step(session)
        counts.append(session.masks.nonzeros["weight"])
    assert counts == [260] * 5 + [250] * 46


def test_the_first_masks_are_the_largest_weights_and_ten_more():
    session = session_of()
    torch.manual_seed(0)
    first = nn.Linear(100, 10, bias=False).weight.detach().flatten()
    largest = first.abs().topk(250).indices
    assert session.masks["weight"].flatten()[largest].all()
    assert torch.equal(session.state.model.weight.flatten()[largest], first[largest])


def test_an_update_keeps_the_most_important_and_adds_at_random():
    session = session_of(alpha=2.0)
    changed = []
    for number in range(1, 51):
        before = step(session)
        now, weight = session.masks["weight"].flatten(), session.state.model.weight.flatten()
        if not torch.equal(now, before.mask):
            changed.append(number)
        if number % 5 or number > 40:
            assert torch.equal(now, before.mask)
            continue
        importance = before.weight.abs() + 2.0 * before.gradient.abs()
        kept = importance.masked_fill(~before.mask, -1).topk(240).indices
        assert now[kept].all()
        assert torch.equal(weight[kept], before.weight[kept])
        new = now.clone()
        new[kept] = False
        assert int(new.sum()) == 10
        assert not weight[new].any()
    assert set(changed) <= set(range(5, 41, 5))
    assert len(changed) > 6  # what is removed may be what comes back


def test_a_new_task_gets_weights_that_nobody_needs_yet():
    session = session_of()
    for _ in range(50):
        step(session)
    old, weight = session.masks["weight"], session.state.model.weight.detach().clone()
    session.state.step = 0
    session.begin_task(1)
    now = session.masks["weight"]
    assert int(now.sum()) == 260
    assert now[old].all()
    assert torch.equal(session.state.model.weight, weight)
    session.begin_task(1)
    assert int(session.masks["weight"].sum()) == 260
    for _ in range(5):
        step(session)
    assert session.masks.nonzeros["weight"] == 250


def test_without_expansion_and_exchange_masks_stay():
    session = session_of(p_inter=0.0, p_intra=0.0)
    first = session.masks["weight"]
    for _ in range(50):
        step(session)
    assert int(first.sum()) == 250
    assert torch.equal(first, session.masks["weight"])


# --- gradients --------------------------------------------------------------------------------


def test_gradients_of_four_fifths_of_the_target_are_applied_until_the_next_choice():
    session = session_of(dgm=0.8, dgm_every=3, p_inter=0.0, p_intra=0.0)
    model = session.state.model
    for number in range(12):
        x, y = batch(number)
        loss = nn.functional.cross_entropy(model(x), y)
        (whole,) = torch.autograd.grad(loss, model.weight)
        whole = (whole * session.masks["weight"]).flatten()
        before = model.weight.detach().clone().flatten()
        found = step(session)
        if number % 3 == 0:
            chosen = whole.abs().topk(200).indices
            assert session.gradient_densities == {}
        else:
            assert session.gradient_densities == {"weight_gradient": {"weight": 0.2}}
        assert int((found.gradient != 0).sum()) == 200
        assert torch.allclose(found.gradient[chosen], whole[chosen], atol=1e-7)
        assert int((found.weight != before).sum()) <= 200


@pytest.mark.parametrize("refresh", [True, False])
def test_new_connections_learn_at_once_only_where_gradients_are_chosen_anew(refresh):
    session = session_of(dgm=0.999, dgm_every=1000, dgm_refresh=refresh, p_inter=0.0, p_intra=0.1)
    for _ in range(5):
        before = step(session)
    new = session.masks["weight"].flatten() & (session.state.model.weight.flatten() == 0)
    new &= ~before.mask
    assert new.any()
    assert bool(step(session).gradient[new].any()) == refresh


def test_the_present_and_the_replayed_count_each_with_its_own_weight():
    session = session_of(gradients="separate", dgm=0.5, p_inter=0.0, p_intra=0.0)
    now, kept = batch(100), batch(101, size=5)
    session.state.data = Examples(lambda seed: iter([now]))
    session.state.memory = Examples(lambda seed: iter([kept]))
    model, expected = session.state.model, 0
    for (x, y), factor in ((now, 0.5), (kept, 1.0)):
        loss = nn.functional.cross_entropy(model(x), y)
        expected = expected + factor * torch.autograd.grad(loss, model.weight)[0].abs()
    expected = (expected * session.masks["weight"]).flatten().topk(125).indices
    found = step(session)
    assert session.state.looked_at == 13
    assert set(found.gradient.nonzero().flatten().tolist()) == set(expected.tolist())
    assert session.gradient_densities == {"weight_gradient": {"weight": 0.125}}
    step(session)
    assert session.state.looked_at == 13


def test_an_update_looks_at_both_too():
    session = session_of(gradients="separate", p_inter=0.0, alpha=3.0, beta=2.0)
    now, kept = batch(100), batch(101)
    session.state.data = Examples(lambda seed: iter([now]))
    session.state.memory = Examples(lambda seed: iter([kept]))
    for _ in range(4):
        step(session)
    model, gradients = session.state.model, 0
    for (x, y), factor in ((now, 3.0), (kept, 2.0)):
        loss = nn.functional.cross_entropy(model(x), y)
        gradients = gradients + factor * torch.autograd.grad(loss, model.weight)[0].abs()
    before = step(session)
    importance = before.weight.abs() + gradients.flatten()
    best = importance.masked_fill(~before.mask, -1).topk(240).indices
    assert torch.equal(session.state.model.weight.flatten()[best], before.weight[best])
    assert session.masks["weight"].flatten()[best].all()
    assert session.state.looked_at == 16


@pytest.mark.parametrize(
    ("dials", "said"),
    [
        ({"options": {"p_intra": 0.25}}, "method.options.p_intra=0.25"),
        ({"options": {"dgm": 1.0}}, "method.options.dgm=1.0"),
        ({"options": {"gradients": "mergd"}}, "did you mean"),
        ({"drop": "magnitude", "grow": "random"}, "method.drop=magnitude"),
        ({"structure": {"name": "nm", "n": 1, "m": 4}}, "structure=nm"),
        ({"storage": "shadow"}, "method.storage=shadow"),
    ],
)
def test_what_does_not_go_with_it_is_refused(dials, said):
    with pytest.raises(UserError, match=said):
        method("sparcl", sparsity=0.75, **dials)


# --- removal of data --------------------------------------------------------------------------


def test_stages_leave_as_many_samples_as_the_code_does():
    stages = Stages(0.3, every=5, until=20)
    left = [stages.left(10_000, epoch) for epoch in range(50)]
    assert [left[epoch] for epoch in (0, 4, 5, 10, 15, 20, 49)] == [
        10_000, 10_000, 9250, 8500, 7750, 7000, 7000,
    ]  # fmt: skip
    assert sum(left) / 50 / 10_000 == 0.775
    assert [epoch for epoch in range(50) if stages.comes(epoch)] == [5, 10, 15, 20]
    asked = SimpleNamespace(remove=0.3, remove_every="10%", remove_until="20ep")
    assert stages_of(asked, 50) == stages


@pytest.mark.parametrize(
    ("by", "left"), [("misclassified", [0, 1, 2, 5]), ("forgetting", [1, 2, 3, 5])]
)
def test_the_easiest_are_removed(by, left):
    removal = Removal(Stages(1 / 3, every=4, until=4), by, seed=0)
    removal.begin_epoch(6, task=0, epoch=0)
    answers = {  # of four epochs, right or wrong
        0: "xxx.",  # wrong thrice, never forgotten
        1: "x.x.",  # wrong twice, forgotten once
        2: "xxxx",  # never right
        3: "..x.",  # wrong once, forgotten once
        4: "....",
        5: ".x.x",  # wrong twice, forgotten twice
    }
    for epoch in range(4):
        right = torch.tensor([answers[sample][epoch] == "." for sample in range(6)])
        for places in (torch.tensor([5, 1, 2]), torch.tensor([0, 4, 3])):
            removal.observe(places, right[places])
    assert removal.kept is None
    removal.begin_epoch(6, task=0, epoch=4)
    assert removal.kept.tolist() == left
    resumed = Removal(removal.stages, by, seed=0)
    resumed.load_state_dict(removal.state_dict())
    assert resumed.kept.tolist() == left
    removal.begin_epoch(9, task=1, epoch=0)
    assert removal.kept is None


def test_of_equals_the_seed_chooses():
    found = []
    for seed in (0, 0, 1):
        removal = Removal(Stages(0.5, every=1, until=1), "misclassified", seed)
        removal.begin_epoch(100, task=0, epoch=0)
        removal.observe(torch.arange(100), torch.ones(100, dtype=torch.bool))
        removal.begin_epoch(100, task=0, epoch=1)
        found.append(removal.kept.tolist())
    assert found[0] == found[1] != found[2]
    assert len(found[0]) == 50


# --- whole runs -------------------------------------------------------------------------------

BASE = [
    "task=continual", "stream=split_digits", "model=tiny_mlp", "epochs=4", "batch_size=32",
    "plots=false", "quiet=true", "trainer.accelerator=cpu", "optimizer=adam", "schedule=linear",
    "optimizer.lr=0.003", "optimizer.weight_decay=0", "data.validation=0",
]  # fmt: skip
TWO = ("stream.tasks=2", "stream.classes=[0,1,2,3]")
LESS = ("task.options.remove=0.5", "task.options.remove_every=1ep", "task.options.remove_until=2ep")


def go(tmp_path, *words):
    result = run(compose([*BASE, f"runs={tmp_path}", *words]))
    assert result["status"] == "finished", result.get("error")
    return result["metrics"]


def test_epochs_get_shorter_and_cost_less(tmp_path):
    whole = go(tmp_path / "all", "method=static", "sparsity=0.5", "data.validation=0.1")
    less = go(tmp_path / "less", "method=static", "sparsity=0.5", "data.validation=0.1", *LESS)
    size = 1293 // 5  # samples of a task
    sizes = [size, size - size // 2 // 2, size - size // 2 // 2 * 2, size - size // 2 // 2 * 2]
    steps = [n // 32 for n in sizes]
    with next(tmp_path.glob("less/*/metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    ends = [sum((steps * 5)[: n + 1]) for n in range(20)]
    assert [int(row["step"]) for row in rows] == ends
    assert less["steps"] == 5 * sum(steps) < whole["steps"] == 20 * steps[0]
    cheaper = less["flops/training"] / whole["flops/training"]
    assert cheaper == pytest.approx(sum(steps) / (4 * steps[0]))
    assert less["continual/data_use"] == sum(sizes) / (4 * size)
    assert "continual/data_use" not in whole
    rates = [float(row["lr"]) for row in rows]
    last = 0.003 * (1 - (sum(steps) - 1) / sum(steps))
    assert rates[3::4] == pytest.approx([last] * 5)
    assert len({row["validation/accuracy"] for row in rows}) > 5


def test_each_task_begins_with_all_its_samples_and_a_wider_network(tmp_path):
    words = ("method=sparcl", "sparsity=0.5", "distribution=uniform", "method.every=10it",
             "method.options.p_inter=0.1", "method.options.p_intra=0.05")  # fmt: skip
    go(tmp_path, *words, "replay=er", "replay.size=40", *LESS)
    with next(tmp_path.glob("*/metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    sparsities = [round(float(row["sparsity"]), 2) for row in rows]
    assert sparsities == [0.4, 0.5, 0.5, 0.5] * 5


@pytest.mark.parametrize("replay", ["er", "er_ace", "der", "derpp"])
def test_it_goes_with_every_replay_and_counts_what_it_looks_at(tmp_path, replay):
    words = (*TWO, f"replay={replay}", "replay.size=40", "epochs=1", "sparsity=0.5",
             "method=sparcl", "method.options.dgm_every=4")  # fmt: skip
    separate = go(tmp_path / "separate", *words)
    merged = go(tmp_path / "merged", *words, "method.options.gradients=merged")
    assert separate["continual/acc"] is not None
    assert separate["flops/training"] > merged["flops/training"]


@pytest.mark.parametrize(
    ("words", "at"),
    [
        (["method=sparcl", "replay=er", "replay.size=50", "method.every=25%"], "43+0"),
        (["method=sparcl", "replay=derpp", "replay.size=50", "method.every=25%", *LESS], "33+0"),
        (["method=rigl", "method.every=4it", *LESS, "data.validation=0.1"], "36+1"),
    ],
    ids=["masks", "all", "removal"],
)
def test_killed_within_a_task_it_ends_as_if_it_had_not_been(tmp_path, words, at):
    stream = ["task=continual", "batch_size=32", "epochs=4", *TWO, *words]
    whole, _ = finish(home(tmp_path / "whole"), *stream)
    dead = die(home(tmp_path / "killed"), OFTEN, *stream, DIE_AT=at)
    finish(tmp_path / "killed", OFTEN, *stream)
    assert_same(dead, whole)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task.options.remove_by=forgetting"], "has no effect without task.options.remove"),
        ([*LESS, "task.options.remove_until=4ep"], "remove_every <= remove_until < 4"),
        ([*LESS, "task.options.remove_every=5it"], "remove_every=5it: samples are removed between"),
        ([*LESS, "task.options.remove_by=forgeting"], "did you mean 'forgetting'"),
        ([*LESS, "task.options.remove=0.95"], "fewer than a batch"),
        (["task.options.remove=30"], "did you mean 0.30"),
    ],
)
def test_removals_that_cannot_be_are_refused(tmp_path, words, said):
    with pytest.raises(UserError, match=said):
        run(compose([*BASE, f"runs={tmp_path / 'runs'}", "method=dense", *words]))
    assert not list((tmp_path / "runs").glob("*"))
