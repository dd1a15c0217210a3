"""EWC and LwF by hand, and in whole runs over a stream."""

from types import SimpleNamespace

import pytest
import torch
from mortal_runs import OFTEN, assert_same, die, finish, home, load
from torch import nn

from sparsebench.config.check import check
from sparsebench.config.compose import compose
from sparsebench.config.schema import RegulariserConfig
from sparsebench.continual.regularise import (
    Before,
    Consolidation,
    Distillation,
    distillation,
    fisher_of,
)
from sparsebench.errors import UserError
from sparsebench.run import run
from sparsebench.sparsity.masks import Masks

EVERYTHING = torch.ones(3, dtype=torch.bool)


class Samples:
    """A part of a stream that is given."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def cut(self, places, draw=None):
        return self.x[places], self.y[places], torch.zeros(len(places)), self.x[:0]


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Linear(4, 3, bias=False)


@pytest.fixture
def samples():
    chance = torch.Generator().manual_seed(1)
    return Samples(torch.randn(6, 4, generator=chance), torch.tensor([0, 1, 2, 0, 1, 2]))


def by_hand(net, x, y):
    """(p - onehot)^2 times x^2 of one sample."""
    p = net(x).softmax(-1)
    return ((p - nn.functional.one_hot(y, 3)) ** 2).outer(x**2).detach()


def before(task, net, parts, masks=None, rivals=EVERYTHING, past=EVERYTHING):
    masks = masks or Masks({"weight": net.weight})
    return Before(task, net, masks, parts, rivals=rivals, past=past)


def regulariser(kind, **dials):
    return kind(RegulariserConfig(**dials), 0, 2)


# --- Fisher information -----------------------------------------------------------------------


def test_the_empirical_one_is_the_mean_of_squares_of_each_sample(linear, samples):
    singles = torch.arange(6).split(1)
    found = fisher_of(linear, samples, singles, EVERYTHING)["weight"]
    each = [by_hand(linear, x, y) for x, y in zip(samples.x, samples.y, strict=True)]
    assert torch.allclose(found, torch.stack(each).mean(0), atol=1e-6)
    assert torch.allclose(fisher_of(linear, samples, singles[:1], EVERYTHING)["weight"], each[0])


def test_that_of_batches_squares_their_mean(linear, samples):
    pair = fisher_of(linear, samples, [torch.tensor([0, 1])], EVERYTHING)["weight"]
    gradients = []
    for place in (0, 1):
        loss = nn.functional.cross_entropy(linear(samples.x[place]), samples.y[place])
        gradients.append(torch.autograd.grad(loss, linear.weight)[0])
    assert torch.allclose(pair, ((gradients[0] + gradients[1]) / 2) ** 2, atol=1e-6)
    single = fisher_of(linear, samples, torch.arange(2).split(1), EVERYTHING)["weight"]
    assert not torch.allclose(pair, single, rtol=0.1)


def test_the_true_one_draws_labels_from_the_answer(linear, samples):
    x, p = samples.x[0], linear(samples.x[0]).softmax(-1).detach()
    options = [by_hand(linear, x, torch.tensor(y)) for y in range(3)]
    counts, draws = [0, 0, 0], 600
    for seed in range(draws):
        chance = torch.Generator().manual_seed(seed)
        found = fisher_of(linear, samples, [torch.tensor([0])], EVERYTHING, chance)["weight"]
        (label,) = [y for y in range(3) if torch.allclose(found, options[y], atol=1e-7)]
        counts[label] += 1
    expected = draws * p
    assert float(((torch.tensor(counts) - expected) ** 2 / expected).sum()) < 13.8  # 0.1 %, 2 df


def test_outputs_that_did_not_compete_have_no_importance(linear, samples):
    two = torch.tensor([True, True, False])
    parts = Samples(samples.x[:2], samples.y[:2])
    assert not fisher_of(linear, parts, torch.arange(2).split(1), two)["weight"][2].any()


def test_online_ewc_adds_up_and_holds_to_the_last_weights(linear, samples):
    held = regulariser(Consolidation, strength=4.0, decay=0.5, fisher="empirical")
    assert float(held.term(linear, None, torch.zeros(1, 3))) == 0
    assert held.begin(before(1, linear, [samples, None])) == 3 * 6
    first = held.fisher["weight"].clone()
    with torch.no_grad():
        linear.weight.add_(0.1)
    assert torch.equal(held.anchor["weight"] + 0.1, linear.weight)
    other = Samples(samples.x[:3], samples.y[:3])
    held.begin(before(2, linear, [None, other, None]))
    alone = fisher_of(linear, other, torch.arange(3).split(1), EVERYTHING)["weight"]
    assert torch.allclose(held.fisher["weight"], 0.5 * first + alone, atol=1e-6)
    with torch.no_grad():
        linear.weight.sub_(0.25)
    term = held.term(linear, None, torch.zeros(1, 3))
    assert float(term.detach()) == pytest.approx(
        2 * 0.0625 * float(held.fisher["weight"].sum()), rel=1e-5
    )
    term.backward()
    assert torch.allclose(linear.weight.grad, -held.fisher["weight"], atol=1e-6)  # 4 F (-1/4)


def test_what_has_no_connection_has_no_importance(linear, samples):
    masks = Masks({"weight": linear.weight})
    masks.set("weight", torch.arange(12).view(3, 4) % 2 == 0)
    held = regulariser(Consolidation, fisher="batch", samples=4)
    assert held.begin(before(1, linear, [samples, None], masks)) == 12
    assert not held.fisher["weight"][~masks["weight"]].any()
    assert held.fisher["weight"][masks["weight"]].all()
    assert held.bytes == {"fisher": 48, "anchor": 48}


# --- distillation -----------------------------------------------------------------------------


def test_temperature():
    p = torch.tensor([[0.7, 0.2, 0.1]])
    softened = torch.tensor([0.52288, 0.27949, 0.19763])
    new = torch.tensor([[0.3, -0.2, 0.5]])
    expected = -(softened * (new / 2).log_softmax(1)).sum()
    assert float(distillation(p.log(), new, 2.0)) == pytest.approx(float(expected), abs=1e-5)
    logits = p.log().requires_grad_()
    distillation(p.log(), logits, 2.0).backward()
    assert torch.allclose(logits.grad, torch.zeros(1, 3), atol=1e-7)  # met already


def test_old_answers_are_those_from_before_the_task_at_each_samples_place(linear, samples):
    held = regulariser(Distillation, strength=3.0)
    past = torch.tensor([True, True, False])
    batch = SimpleNamespace(place=torch.tensor([4, 1]))
    assert float(held.term(linear, batch, torch.zeros(2, 3))) == 0
    assert held.begin(before(1, linear, [None, samples], past=past)) == 6
    old = linear(samples.x[[4, 1]]).detach()[:, :2]
    with torch.no_grad():
        linear.weight.mul_(-1)
    new = linear(samples.x[[4, 1]])
    wanted = (old / 2).softmax(1)
    expected = -3 * (wanted * (new[:, :2] / 2).log_softmax(1)).sum(1).mean()
    found = held.term(linear, batch, new)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), abs=1e-6)
    assert held.bytes == {"responses": 6 * 2 * 4 + 3}
    resumed = regulariser(Distillation, strength=3.0)
    resumed.load_state_dict(held.state_dict())
    assert torch.equal(resumed.term(linear, batch, new), found)


# --- whole runs -------------------------------------------------------------------------------

BASE = [
    "task=continual", "stream=split_digits", "model=tiny_mlp", "epochs=2", "batch_size=32",
    "plots=false", "quiet=true", "trainer.accelerator=cpu", "optimizer=adam", "schedule=constant",
    "optimizer.lr=0.003", "optimizer.weight_decay=0", "data.validation=0", "stream.tasks=2",
    "stream.classes=[0,1,2,3]", "stream.scenario=task_il",
]  # fmt: skip


def go(tmp_path, *words):
    result = run(compose([*BASE, f"runs={tmp_path}", *words]))
    assert result["status"] == "finished", result.get("error")
    return result["metrics"]


@pytest.mark.parametrize("kind", ["ewc", "lwf"])
def test_what_it_takes_is_counted(tmp_path, kind):
    sparse = ("method=static", "sparsity=0.5")
    without = go(tmp_path / "none", *sparse)
    found = go(tmp_path / kind, *sparse, f"regulariser={kind}")
    steps = without["steps"] * 32 * 3
    per_pass = without["flops/training"] / steps
    extra = (found["flops/training"] - without["flops/training"]) / per_pass
    state = load(next(tmp_path.glob(f"{kind}/*/last.ckpt")))["continual"]["regulariser"]
    if kind == "lwf":
        answers = state["responses"]["answers"]
        assert extra == pytest.approx(len(answers), rel=1e-6)
        assert found["bytes/responses"] == answers.numel() * 4 + 4
        assert answers.shape[1] == 2
    else:
        assert extra % 3 == pytest.approx(0, abs=1e-6)
        assert 250 < extra / 3 < 330  # samples of the first task
        assert found["bytes/fisher"] == found["bytes/anchor"] == 4 * found["parameters"]
    assert found["bytes/total"] == sum(
        value for name, value in found.items() if name.startswith("bytes/") and "total" not in name
    )
    assert "bytes/fisher" not in without


@pytest.mark.parametrize("kind", ["ewc", "lwf"])
def test_it_holds_the_network_to_what_it_was(tmp_path, kind):
    def moved(strength):
        words = ("method=dense", f"regulariser={kind}", f"regulariser.strength={strength}")
        found = go(tmp_path / str(strength), *words)
        return found["continual/bwt"], found["weights_sha256"]

    free = go(tmp_path / "none", "method=dense")
    assert moved(0.0) == (free["continual/bwt"], free["weights_sha256"])
    assert moved(1000.0)[0] >= moved(0.0)[0]
    assert moved(1000.0)[1] != free["weights_sha256"]


@pytest.mark.parametrize("kind", ["regulariser=ewc", "regulariser=lwf"])
def test_killed_within_a_task_it_ends_as_if_it_had_not_been(tmp_path, kind):
    stream = ["task=continual", "batch_size=32", "epochs=2", kind, "replay=er", "replay.size=40",
              "regulariser.strength=1"]  # fmt: skip
    whole, _ = finish(home(tmp_path / "whole"), *stream)
    dead = die(home(tmp_path / "killed"), OFTEN, *stream, DIE_AT="41+0")
    finish(tmp_path / "killed", OFTEN, *stream)
    assert_same(dead, whole)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["regulariser=ewc", "task.options.mode=joint"], "regulariser=ewc: there is nothing"),
        (["regulariser=ewc", "regulariser.fisher=tru"], "did you mean 'true'"),
        (["regulariser=lwf", "regulariser.fisher=batch"], "without regulariser=ewc"),
        (["regulariser=ewc", "regulariser.temperature=3"], "without regulariser=lwf"),
        (["regulariser=lwf", "regulariser.strength=-1"], "regulariser.strength=-1"),
        (["regulariser=ewc", "method=cl_dst", "method.every=4it"], "forgets nothing"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, words, said):
    method = [] if any(word.startswith("method=") for word in words) else ["method=dense"]
    with pytest.raises(UserError, match=said):
        run(compose([*BASE, f"runs={tmp_path / 'runs'}", *method, *words]))
    assert not list((tmp_path / "runs").glob("*"))


def test_it_needs_a_stream():
    with pytest.raises(UserError, match="without task=continual"):
        check(compose(["regulariser=ewc", "method=static"]))
