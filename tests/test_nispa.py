"""NISPA: stable units read stable units only, and what they read never changes."""

import copy
import io

import pytest
import torch
from torch import nn

from sparsebench.errors import UserError
from sparsebench.library import method
from sparsebench.models.tiny import tiny_conv
from sparsebench.sparsity import Session
from sparsebench.sparsity.activity import activities, most_active
from sparsebench.sparsity.examples import Examples
from sparsebench.sparsity.methods.nispa import active_share
from sparsebench.sparsity.optimizer_state import forget
from sparsebench.sparsity.units import connections

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-3),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=5e-4),
}
STEPS, PHASE = 8, 2


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 6)
    )


def conv() -> nn.Module:
    torch.manual_seed(0)
    return tiny_conv((1, 8, 8), 6)


def batch(task, step, inputs=(12,)):
    chance = torch.Generator().manual_seed(100 * task + step)
    x = torch.randn(10, *inputs, generator=chance)
    return x, 2 * task + torch.randint(2, (10,), generator=chance)


class Stream:
    """Tasks of two classes with heads of their own, in a bare loop."""

    def __init__(self, model=None, optimizer="adam", inputs=(12,), resume=None, **dials):
        self.model, self.inputs = model or network(), inputs
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        if resume:
            self.model.load_state_dict(resume[0])
            self.optimizer.load_state_dict(resume[1])
        options = {"phases": 8, "batches": 2} | dials.pop("options", {})
        dials = {"sparsity": 0.6, "every": f"{PHASE}it", "options": options} | dials
        self.task = 0
        self.session = Session(
            method("nispa", **dials), self.model, self.optimizer, total_steps=STEPS, seed=0,
            resume=resume and resume[2], examples=Examples(self._batches, self._loss),
        )  # fmt: skip

    def _batches(self, seed):
        return (batch(self.task, number, self.inputs) for number in range(4))

    def _loss(self, model, given):
        own = slice(2 * self.task, 2 * self.task + 2)
        return nn.functional.cross_entropy(model(given[0])[:, own], given[1] - 2 * self.task)

    def steps(self, first=0, last=STEPS):
        for step in range(first, last):
            self.session.before_forward()
            self._loss(self.model, batch(self.task, step, self.inputs)).backward()
            self.session.after_backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.session.after_step()
            self.session.masks.check()

    def begin(self, task):
        forget([self.optimizer])
        self.task, self.session.state.step = task, 0
        outputs = torch.zeros(6, dtype=torch.bool)
        outputs[2 * task : 2 * task + 2] = True
        self.session.begin_task(task, outputs)
        return self

    def learn(self, *tasks):
        for task in tasks:
            self.begin(task)
            self.steps()
            self.session.end_task(task)
        return self

    def answers(self, task):
        self.model.eval()
        with self.session.as_task(task), torch.no_grad():
            found = self.model(batch(task, 99, self.inputs)[0])[:, 2 * task : 2 * task + 2]
        self.model.train()
        return found

    @property
    def method(self):
        return self.session.method

    def weights(self):
        return {name: t.detach().clone() for name, t in self.model.state_dict().items()}

    def state(self):
        parts = (self.model, self.optimizer, self.session)
        return copy.deepcopy(tuple(part.state_dict() for part in parts))


def test_the_schedule_and_the_most_active_units():
    shares = {t: active_share(t, 30) for t in (1, 10, 15, 20, 25, 26)}
    assert shares[1] == pytest.approx(0.99726, abs=1e-5)
    assert [shares[t] for t in (10, 15, 20)] == pytest.approx([0.75, 0.5, 0.25])
    assert shares[25] > 0.05 > shares[26] == pytest.approx(0.04323, abs=1e-5)
    activity = torch.tensor([5.0, 3.0, 1.0, 1.0])
    assert most_active(activity, 0.8).tolist() == [True, True, False, False]
    assert most_active(activity, 0.81).tolist() == [True, True, True, False]
    assert most_active(torch.zeros(3), 0.5).tolist() == [True, False, False]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model, inputs", [(network, (12,)), (conv, (1, 8, 8))])
def test_answers_on_a_task_stay_bitwise_as_they_were(optimizer, model, inputs):
    stream, before = Stream(model(), optimizer, inputs), {}
    for task in range(3):
        stream.learn(task)
        before[task] = stream.answers(task)
        for other, answers in before.items():
            assert torch.equal(stream.answers(other), answers)
    assert stream.method.vault.masks == [{}, {}, {}]  # with no mask of any task


def test_without_fixed_weights_they_would_change():
    stream = Stream().learn(0)
    before = stream.answers(0)
    stream.begin(1)
    stream.session.masks.fixed.hold({}, {})
    stream.steps()
    assert not torch.equal(stream.answers(0), before)


def test_connections_go_from_plastic_to_stable_never_and_their_number_stays():
    stream = Stream().learn(0).begin(1)
    units, kept = stream.method.units, [chosen.clone() for chosen in stream.method.kept]
    before = dict(stream.session.masks.items())
    stream.steps(0, PHASE)
    stable = stream.method._stable
    plastic = [~chosen for chosen in stable]
    assert all((mine >= old).all() for mine, old in zip(stable, kept, strict=True))
    assert stable[units.output].tolist() == [True] * 4 + [False] * 2  # classes seen
    for name in ("2.weight", "4.weight"):
        mask = stream.session.masks[name]
        assert not (mask & units.between(name, plastic, stable)).any()
        gone, new = before[name] & ~mask, mask & ~before[name]
        expected = units.between(name, plastic, stable) & before[name]
        assert torch.equal(gone, expected)
        assert not new[units.outputs(name, stable)].any()
        assert stream.model.get_parameter(name)[new].all()
        room = units.outputs(name, plastic)[:, None] & ~before[name]
        assert int(new.sum()) == min(int(gone.sum()), int(room.sum())) > 0
    inner = stream.session.masks["2.weight"]
    assert int(inner.sum()) == int(before["2.weight"].sum())
    assert inner.any(0)[plastic[0]].all()  # plastic units lead somewhere
    assert torch.equal(stream.session.masks["0.weight"], before["0.weight"])  # inputs are stable


def test_what_is_not_frozen_begins_anew_with_a_task():
    built = network().state_dict()
    stream = Stream().learn(0)
    left, kept = stream.weights(), [chosen.clone() for chosen in stream.method.kept]
    masks = dict(stream.session.masks.items())
    stream.begin(1)
    now = stream.weights()
    for name, mask in stream.session.masks.items():
        assert torch.equal(mask, masks[name])
        frozen = mask & stream.method.units.between(name, kept, kept)
        assert torch.equal(stream.method.vault.owned[name], frozen)
        assert torch.equal(now[name], torch.where(frozen, left[name], built[name]) * mask)
    for name, number in (("0.bias", 0), ("2.bias", 1)):
        assert 0 < int(kept[number].sum()) < 24
        assert torch.equal(now[name], torch.where(kept[number], left[name], built[name]))
    assert torch.equal(now["4.bias"][:2], left["4.bias"][:2])


def test_a_phase_that_loses_too_much_is_taken_back_and_held():
    stream = Stream()
    said = iter([90.0, 95.0, 94.2])  # two phases are always kept; the third loses 0.8 points
    stream.session.state.accuracy = lambda: next(said)
    stream.begin(0).steps(0, PHASE)
    stable = [chosen.clone() for chosen in stream.method._stable]
    stream.steps(PHASE, 2 * PHASE - 1)
    rewire, seen = stream.method._rewire, {}

    def watch(state):
        seen.update(weights=stream.weights(), masks=state.masks.packed())
        rewire(state)

    stream.method._rewire = watch
    stream.steps(2 * PHASE - 1, 3 * PHASE)
    for last in (3 * PHASE, STEPS):
        stream.steps(3 * PHASE, last)
        assert all(torch.equal(t, seen["weights"][n]) for n, t in stream.weights().items())
        packed = stream.session.masks.packed()
        assert all(torch.equal(bits, seen["masks"][n]) for n, bits in packed.items())
    assert all(map(torch.equal, stable, stream.method._stable))
    assert stream.session.state.notes == ["task 0 stopped after phase 3 of 4"]
    stream.session.end_task(0)
    before = stream.answers(0)
    stream.session.state.accuracy = None
    stream.learn(1)
    assert torch.equal(stream.answers(0), before)
    assert not torch.equal(stream.weights()["0.weight"], seen["weights"]["0.weight"])


def test_a_smaller_loss_of_accuracy_is_none_and_the_floor_stops_too():
    stream, said = Stream(), iter([90.0, 95.0, 94.3, 96.0])
    stream.session.state.accuracy = lambda: next(said)
    stream.learn(0)
    assert stream.session.state.notes == []
    low = Stream(options={"phases": 4, "floor": 0.2}).learn(0)  # p_3 = 0.146
    assert low.session.state.notes == ["task 0 stopped after phase 3 of 4"]


@pytest.mark.parametrize("case", ["mlp", "conv"])
def test_activity_is_that_of_what_the_next_layer_is_fed(case):
    model, inputs = (network(), (12,)) if case == "mlp" else (conv(), (1, 8, 8))
    stream = Stream(model, inputs=inputs)
    x = batch(0, 0, inputs)[0]
    stream.session.state.data = Examples(lambda seed: iter([(x, batch(0, 0)[1])]), stream._loss)
    found = activities(stream.session.state, stream.method.units, 1)
    model.eval()
    with torch.no_grad():
        if case == "mlp":
            expected = [model[:2](x).sum(0), model[:4](x).sum(0)]
        else:
            first = torch.relu(model.bn1(model.conv1(x)))
            second = torch.relu(model.bn2(model.conv2(first)))
            expected = [first.sum((0, 2, 3)), second.mean((2, 3)).sum(0)]
    for number, sums in enumerate(expected):
        torch.testing.assert_close(found[number], sums.double(), rtol=1e-4, atol=1e-4)
    assert stream.session.state.looked_at == 4  # a third of 10 samples, rounded up


def test_convolutions_move_whole_kernels():
    stream = Stream(conv(), inputs=(1, 8, 8)).begin(0)
    before = stream.session.masks["conv2.weight"]
    for _ in range(2):
        stream.steps(0, PHASE)
        mask = stream.session.masks["conv2.weight"]
        assert torch.equal(mask, connections(mask)[..., None, None].expand_as(mask))
        stream.session.state.step = 0
    assert int(mask.sum()) == int(before.sum())


@pytest.mark.parametrize("after, stops", [(3, False), (7, True)])
def test_resuming_inside_a_task_is_bitwise_equal(after, stops):
    def accuracy(stream):
        return lambda: 0.0 if stops and stream.method._phase == 3 else 50.0

    whole = Stream().learn(0)
    whole.session.state.accuracy = accuracy(whole)
    whole.begin(1).steps(0, after)
    file = io.BytesIO()
    torch.save(whole.state(), file)
    file.seek(0)
    again = Stream(resume=torch.load(file, weights_only=True))
    again.task, again.session.state.accuracy = 1, accuracy(again)
    assert whole.method._stopped == again.method._stopped == stops
    for stream in (whole, again):
        stream.steps(after)
        stream.session.end_task(1)
        stream.learn(2)
    for (name, a), (_, b) in zip(whole.weights().items(), again.weights().items(), strict=True):
        assert torch.equal(a, b), name
    assert whole.session.masks.digest() == again.session.masks.digest()


def test_what_it_can_not_do_is_refused():
    with pytest.raises(UserError, match="has 1 phase of 5, and 2 are needed"):
        Stream(every="5it")
    with pytest.raises(UserError, match="sparsity=0: task 1 of 3"):
        method("nispa", sparsity=0.0).check_tasks({}, 3)
    mixing = nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 6))
    with pytest.raises(UserError, match=r"'1' \(LayerNorm\) mixes units"):
        Stream(mixing).begin(0)
    stream = Stream()
    stream.method.check_tasks({}, 3)
    with pytest.raises(UserError, match="stream.scenario=domain_il"):
        stream.session.begin_task(0, torch.ones(6, dtype=torch.bool))
