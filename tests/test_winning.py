"""Learned masks for each task: WSN and SupSup."""

import math
from dataclasses import replace

import pytest
import torch
from test_continual_runs import BASE, go
from test_isolation import OPTIMIZERS, STEPS, Stream, batch
from torch import nn

from sparsebench.config.compose import compose
from sparsebench.continual.untold import untold
from sparsebench.errors import UserError
from sparsebench.library import method
from sparsebench.run import run
from sparsebench.sparsity import Session
from sparsebench.sparsity.distributions import allocate, densities
from sparsebench.sparsity.methods.winning import halved, score_gradient


def stream_of(name, optimizer="adam", **given):
    options = {**method(name).spec.options, "rate": 0.02, **given.pop("options", {})}
    return Stream(optimizer, name=name, options=options, **given)


def scores(stream, name="0.weight"):
    return stream.session.method.observers["popup"].scores[name].clone()


def top(score, k):
    """Of equal ones the lowest indices, by a stable sort."""
    order = sorted(range(score.numel()), key=lambda i: (-abs(float(score.view(-1)[i])), i))
    mask = torch.zeros(score.numel(), dtype=torch.bool)
    mask[order[:k]] = True
    return mask.view(score.shape)


# --- masks and scores ---------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "weight_gradient"), [(1.0, 3.0), (0.0, 0.0)])
def test_gradients_pass_straight_through_the_mask(m, weight_gradient):
    """Weight 2, score -0.5, gradient 3 at the masked weight."""
    assert score_gradient(torch.tensor(2.0), torch.tensor(3.0), torch.tensor(-0.5)) == -6.0
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    session = Session(method("wsn", sparsity=0.5), model, optimizer, total_steps=4, seed=0)
    popup = session.method.observers["popup"]
    with torch.no_grad():
        model.weight.fill_(2.0)
    popup._train({"weight": torch.tensor([[-0.5, 0.5]])})
    session.masks.set("weight", torch.tensor([[bool(m), not m]]))
    seen = {}
    popup.scores.step = seen.update
    session.before_forward()
    (3.0 * model(torch.ones(1, 2))).sum().backward()
    session.after_backward()
    assert seen["weight"].tolist() == [[-6.0, 6.0]]
    assert model.weight.grad[0, 0] == weight_gradient
    optimizer.step()
    session.masks.settle([optimizer])
    assert model.weight[0, 0] == 2.0 - weight_gradient


def test_masks_are_the_highest_scores_at_each_step():
    stream = stream_of("wsn", every="1it")
    seen = set()
    stream.begin(0)
    for step in range(STEPS):
        for name, k in {"0.weight": 39, "2.weight": 19}.items():  # of 192 and 96
            mask = stream.session.masks[name]
            assert torch.equal(mask, top(scores(stream, name), k))
            seen.add(str(mask.tolist()))
        stream.steps(0, step, step + 1)
    assert len(seen) > 4


def test_of_equal_scores_the_lowest_indices_are_kept():
    model = nn.Linear(7, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = Session(method("wsn", sparsity=0.7), model, optimizer, total_steps=4, seed=0)
    session.method.observers["popup"]._train({"weight": torch.full((1, 7), 0.3)})
    session.method.update(session.state)
    assert session.masks["weight"].tolist() == [[True, True, *[False] * 5]]  # round(2.1)


def test_scores_are_drawn_within_one_over_the_root_of_the_fan_in():
    score = scores(stream_of("supsup", sparsity=0.5))
    assert 0.9 / math.sqrt(12) < score.abs().max() <= 1 / math.sqrt(12)
    assert score.mean().abs() < 0.05


@pytest.mark.parametrize("start", ["carried", "anew", "mean"])
def test_scores_of_a_new_task(start):
    stream = stream_of("wsn", options={"scores": start})
    first = scores(stream)
    ends = []
    for task in range(3):
        stream.begin(task)
        begun = scores(stream)
        if start == "anew" and task:
            assert not torch.equal(begun, first)
            assert not torch.equal(begun, ends[-1])
        elif task:
            expected = sum(ends) / len(ends) if start == "mean" else ends[-1]
            assert torch.allclose(begun, expected, atol=1e-7)
        masks = stream.session.masks
        assert torch.equal(masks["0.weight"], top(begun, masks.nonzeros["0.weight"]))
        assert not stream.session.method.observers["popup"].scores.optimizer.state
        stream.steps(task)
        stream.session.end_task(task)
        ends.append(scores(stream))


# --- isolation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wsn", "supsup"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("reset", [True, False])
def test_answers_on_a_task_stay_bitwise_as_they_were(name, optimizer, reset):
    stream = stream_of(name, optimizer, norm=True, reset=reset)
    before = {}
    for task in range(3):
        owned = {n: m.clone() for n, m in stream.vault.owned.items()}
        store = {n: t.clone() for n, t in stream.vault.store.items()}
        stream.learn(task)
        before[task] = stream.answers(task)
        for other, answers in before.items():
            assert torch.equal(stream.answers(other), answers)
        for layer, mask in owned.items():
            assert torch.equal(stream.vault.store[layer][mask], store[layer][mask])
            used = stream.vault.mask(task, layer)
            assert torch.equal(stream.vault.owned[layer], mask | used)
            assert int(used.sum()) == stream.session.masks.nonzeros[layer]


def test_wsn_trains_what_nobody_owns_and_uses_what_others_do():
    stream = stream_of("wsn", "plain", sparsity=0.5)
    built = stream.model[0].weight.detach().clone()
    stream.learn(0)
    used = stream.vault.mask(0, "0.weight")
    assert not torch.equal(stream.vault.store["0.weight"][used], built[used])
    left = stream.model[0].weight.detach().clone()
    stream.begin(1)
    assert torch.equal(stream.model[0].weight, left)  # also what the task has trained and left
    stream.steps(1)
    stream.session.end_task(1)
    both = stream.vault.mask(1, "0.weight")
    assert (both & used).any()
    assert (both & ~used).any()


def test_weights_of_supsup_are_constants_of_two_signs():
    stream = stream_of("supsup", "adamw")
    model, constants = stream.model, {}
    for layer, fan_in in (("0", 12), ("2", 16)):
        weight = model.get_parameter(f"{layer}.weight").detach()
        assert set(weight.abs().unique().tolist()) == {torch.tensor(math.sqrt(2 / fan_in)).item()}
        assert (weight > 0).any()
        assert (weight < 0).any()
        constants[layer] = weight.clone()
    stream.learn(0, 1)
    stream.session.masks.reveal()
    for layer, weight in constants.items():
        assert torch.equal(model.get_parameter(f"{layer}.weight"), weight)
    assert stream.vault.bytes["weights"] > stream.session.method.bytes_of()["weights"] == 8
    assert stream.session.method.bytes_of()["masks"] == 2 * (24 + 12)


@pytest.mark.parametrize("name", ["wsn", "supsup"])
@pytest.mark.parametrize("start", ["carried", "anew", "mean"])
def test_resuming_inside_a_task_is_bitwise_equal(name, start):
    dials = {"norm": True, "options": {"scores": start, "rest": "first"}}
    whole = stream_of(name, **dials).learn(0)
    whole.begin(1)
    whole.steps(1, 0, 5)
    again = stream_of(name, **dials, resume=whole.state())
    for stream in (whole, again):
        stream.steps(1, 5)
        stream.session.end_task(1)
        stream.learn(2)
    for task in range(3):
        assert torch.equal(whole.answers(task), again.answers(task))
    for layer in whole.session.masks:
        assert torch.equal(scores(whole, layer), scores(again, layer))


# --- densities ----------------------------------------------------------------------------------


def test_supsup_gives_a_layer_k_weights_for_each_input_and_output():
    """Figures of k = 8 and 32: 8 * 128 / 36864, and more than half of 540."""
    shapes = {"a": (64, 64, 3, 3), "b": (128, 64, 3, 3), "c": (20, 3, 3, 3)}
    for k, expected in ((8, {"a": 0.02778, "c": 0.34074}), (32, {"a": 0.11111, "c": 0.5})):
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        wanted = {n: min(0.5 * sizes[n], k * (s[0] + s[1])) for n, s in shapes.items()}
        density = sum(wanted.values()) / sum(sizes.values())
        found = densities(shapes, density, name="supsup")
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, abs=5e-6)
        assert allocate(shapes, density, name="supsup") == wanted
    assert densities(shapes, 0.6, name="supsup") == dict.fromkeys(shapes, 0.6)


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dials", "said"),
    [
        ({"prune": "magnitude"}, "method.prune=magnitude: .*only popup will do"),
        ({"initial": "random"}, "method.initial=random: .*only popup"),
        ({"storage": "shadow"}, "method.storage=shadow: .*only frozen"),
        ({"reuse": "never"}, "method.reuse=never: .*only anywhere"),
        ({"drop": "magnitude", "grow": "random"}, "method.drop=magnitude"),
        ({"options": {"infer": True}}, "method.options.infer=true: .*method.options.rest=first"),
        (
            {"options": {"infer": "thirds"}},
            "method.options.infer=thirds: one of False, True, halves",
        ),
        ({"options": {"scores": "old"}}, "method.options.scores=old: one of carried, anew, mean"),
    ],
)
def test_what_has_no_place_is_refused(dials, said):
    with pytest.raises(UserError, match=said):
        method("wsn", sparsity=0.8, **dials)


# --- the task of a sample -------------------------------------------------------------------------


def inferring(name, tasks):
    stream = stream_of(name, "plain", options={"infer": True, "rest": "first"}, sparsity=0.5)
    stream.learn(*range(tasks))
    stream.model.eval()
    return stream


@pytest.mark.parametrize("name", ["wsn", "supsup"])
@pytest.mark.parametrize("done", [True, False])
def test_the_task_is_that_whose_share_lowers_the_entropy_fastest(name, done):
    stream = inferring(name, 2)
    if not done:  # of a task in training the masks of the moment count
        stream.begin(2)
        stream.steps(2, 0, 3)
    tasks, among = 2 if done else 3, torch.tensor([True] * 5 + [False])
    session, (x, _) = stream.session, batch(0, 99)
    found = session.infer(x, among, tasks)
    session.masks.reveal()
    first, last = (session.state.model[i] for i in (0, 2))
    weights = [
        [
            layer.weight.detach()
            * (stream.vault.mask(task, name) if task < 2 else session.masks[name])
            for task in range(tasks)
        ]
        for name, layer in (("0.weight", first), ("2.weight", last))
    ]
    expected = []
    for sample in x:
        alpha = torch.full((tasks,), 1.0 / tasks, requires_grad=True)
        low, high = (sum(a * w for a, w in zip(alpha, own, strict=True)) for own in weights)
        p = (high @ (low @ sample).relu() + last.bias)[among].softmax(0)
        (-(p * p.log()).sum()).backward()
        expected.append(int((-alpha.grad).argmax()))
    assert found.tolist() == expected
    assert len(set(expected)) > 1


def test_the_worse_half_of_the_candidates_goes_until_one_is_left():
    """Slopes change with who else is there, so that what is best at once need not be left."""
    table = {
        (0, 1, 2, 3, 4): [[5.0, 1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0, 1.0]],
        (1, 2, 3): [[9.0, 2.0, 1.0]], (2, 3): [[1.0, 2.0]],
        (0, 1, 2): [[0.0, 5.0, 5.0]], (0, 1): [[2.0, 1.0]],
    }  # fmt: skip
    asked = []

    def slopes(samples, candidates):
        asked.append((samples.flatten().tolist(), candidates))
        return torch.tensor(table[tuple(candidates)])

    assert halved(slopes, torch.tensor([[0.0], [1.0]]), [0, 1, 2, 3, 4]).tolist() == [2, 1]
    assert sorted(asked) == [
        ([0.0], [1, 2, 3]), ([0.0], [2, 3]), ([0.0, 1.0], [0, 1, 2, 3, 4]),
        ([1.0], [0, 1]), ([1.0], [0, 1, 2]),
    ]  # fmt: skip


def test_of_two_tasks_halves_are_what_is_found_at_once():
    stream, own = inferring("supsup", 2), torch.tensor([True] * 4 + [False] * 2)
    x = torch.cat([batch(task, 99)[0] for task in range(2)])
    once = stream.session.infer(x, own, 2)
    stream.session.method.options = replace(stream.session.method.options, infer="halves")
    assert torch.equal(stream.session.infer(x, own, 2), once)
    assert len(set(once.tolist())) > 1


def test_who_else_is_in_a_batch_does_not_matter():
    stream = inferring("supsup", 3)
    x = torch.cat([batch(task, 99)[0] for task in range(3)])
    own = torch.zeros(3, 6, dtype=torch.bool)
    for task in range(3):
        own[task, 2 * task : 2 * task + 2] = True
    with torch.no_grad():
        together = untold(stream.session, stream.model, x, own)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
        shuffled = untold(stream.session, stream.model, x[order], own)
        alone = torch.cat([untold(stream.session, stream.model, s[None], own) for s in x])
    assert torch.allclose(shuffled, together[order], atol=1e-5)
    assert torch.allclose(alone, together, atol=1e-5)
    tasks = stream.session.infer(x, own.any(0), 3)
    assert len(set(tasks.tolist())) > 1
    for row, task in zip(together, tasks.tolist(), strict=True):
        assert row[own[task]].exp().sum() == pytest.approx(1.0, abs=1e-5)
        assert set(row[~own[task]].tolist()) == {-30.0}


def test_a_run_that_infers_has_honest_figures_of_both_scenarios(tmp_path):
    stream = ("stream.tasks=2", "stream.classes=[0,1,2,3]", "sparsity=0.5", "selector.last=false")
    words = (*stream, "method=supsup", "method.options.rate=0.01", "method.options.rest=first")
    result = go(tmp_path, *words, "method.options.infer=true")
    assert result["scenario"] == "class_il"
    metrics, told = result["metrics"], result["accuracy_matrices"]["task_il"]
    assert told[1][0] == told[0][0]
    assert metrics["continual/task_il/bwt"] == 0.0
    assert result["accuracy_matrix"][1][0] < told[1][0]
    assert metrics["test/accuracy"] == pytest.approx(metrics["continual/acc_weighted"] / 100)
    assert math.isfinite(metrics["test/loss"])
    assert metrics["bytes/weights"] == 8
    share = 1 - result["tasks"][-1]["free"]
    assert metrics["continual/cap"] == pytest.approx(100 * (share + 2 / 32))
    told_only = go(tmp_path / "told", *words)
    assert told_only["scenario"] == "task_il"
    assert told_only["accuracy_matrices"]["class_il"] is None
    assert told_only["accuracy_matrix"] == told
    with pytest.raises(UserError, match="stream.scenario=class_il: method=supsup needs the task"):
        run(compose([*BASE, f"runs={tmp_path}", *words, "stream.scenario=class_il"]))
