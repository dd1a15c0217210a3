"""Iterative magnitude pruning: masks, weights and rates of each round, against numpy."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from sparsebench.config.compose import compose
from sparsebench.errors import UserError
from sparsebench.library import method
from sparsebench.run import run
from sparsebench.sparsity import Session
from sparsebench.sparsity.forecast import forecast
from sparsebench.sparsity.optimizer_state import forget
from sparsebench.sparsity.window import Window
from sparsebench.training.optimizers import build_schedule

BEGIN, EVERY, ROUNDS, TOTAL = 2, 5, 3, 20  # prunings after 7, 12 and 17 steps, 3 steps left
TIMES = {"begin": f"{BEGIN}it", "every": f"{EVERY}it", "end": f"{BEGIN + EVERY * ROUNDS}it"}
SPARSITY = 1 - 0.8**ROUNDS  # a fifth of what is left, each time
LAYERS = ("0.weight", "3.weight")


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 30), nn.BatchNorm1d(30), nn.ReLU(), nn.Linear(30, 10))


class Trained:
    """A run of IMP on a small net, and what there was before and after each optimizer step."""

    def __init__(self, seed=0, total=TOTAL, **dials):
        self.model = net()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        dials = {"name": "imp", "sparsity": SPARSITY, **TIMES, **dials}
        self.method = method(**dials)
        self.session = Session(
            self.method, self.model, self.optimizer, total_steps=total, steps_per_epoch=4, seed=seed
        )
        self.after, self.masks = [self.copy()], [dict(self.session.masks.items())]
        self.stepped = [self.after[0]]  # before the method had its turn
        self.fresh = []  # steps after which the optimizer had no memory
        for step in range(1, total + 1):
            self.step(step)

    def copy(self):
        return copy.deepcopy(self.model.state_dict())

    def step(self, number):
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(8, 10, generator=generator)
        y = torch.randint(10, (8,), generator=generator)
        self.session.before_forward()
        nn.functional.cross_entropy(self.model(x), y).backward()
        self.session.after_backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.stepped.append(self.copy())
        self.session.after_step()
        self.after.append(self.copy())
        self.masks.append(dict(self.session.masks.items()))
        if not self.optimizer.state:
            self.fresh.append(number)

    @property
    def prunings(self):
        return [BEGIN + EVERY * k for k in range(1, ROUNDS + 1)]


def smallest_gone(weights, masks, keep):
    """Masks with the largest ``keep`` of the weights present in each; numpy only."""
    found = {}
    for name, mask in masks.items():
        size = np.where(mask, np.abs(weights[name]), -1.0).reshape(-1)
        order = np.argsort(-size, kind="stable")[: keep[name]]
        found[name] = np.zeros(size.size, dtype=bool)
        found[name][order] = True
        found[name] = found[name].reshape(mask.shape)
    return found


def globally_gone(weights, masks, keep):
    """The same with one threshold for all layers."""
    sizes = [np.where(m, np.abs(weights[n]), -1.0).reshape(-1) for n, m in masks.items()]
    order = np.argsort(-np.concatenate(sizes), kind="stable")[:keep]
    flat = np.zeros(sum(s.size for s in sizes), dtype=bool)
    flat[order] = True
    cuts = np.split(flat, np.cumsum([s.size for s in sizes])[:-1])
    return {n: cut.reshape(m.shape) for (n, m), cut in zip(masks.items(), cuts, strict=True)}


@pytest.mark.parametrize("rewind", ["weights", "learning_rate"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_each_round_removes_the_smallest_fifth_of_what_is_left(scope, rewind):
    trained = Trained(scope=scope, rewind=rewind)
    masks = {name: np.ones(trained.after[0][name].shape, dtype=bool) for name in LAYERS}
    for k, step in enumerate(trained.prunings, start=1):
        weights = {name: trained.stepped[step][name].numpy() for name in LAYERS}
        if scope == "layer":
            total = round(600 * 0.8**k)  # two layers of 300; an odd one goes to the first
            keep = dict(zip(LAYERS, (total - total // 2, total // 2), strict=True))
            now = smallest_gone(weights, masks, keep)
        else:
            now = globally_gone(weights, masks, round(600 * 0.8**k))
        for name in LAYERS:
            assert np.array_equal(trained.masks[step][name].numpy(), now[name])
            assert not (now[name] & ~masks[name]).any()
        masks = now
    assert {n: m.sum() for n, m in trained.session.masks.items()} == {
        n: m.sum() for n, m in masks.items()
    }


@pytest.mark.parametrize("begin", [0, BEGIN])
def test_weights_and_buffers_are_those_of_the_rewind_point(begin):
    trained = Trained(begin=f"{begin}it", end=f"{begin + EVERY * ROUNDS}it")
    kept = trained.after[begin]
    for step in (begin + EVERY * k for k in range(1, ROUNDS + 1)):
        for name, value in trained.after[step].items():
            mask = trained.masks[step].get(name)
            expected = kept[name] if mask is None else kept[name] * mask
            assert torch.equal(value, expected), name
            assert not torch.equal(trained.stepped[step][name], expected)
    assert trained.fresh == [begin + EVERY * k for k in range(1, ROUNDS + 1)]


def test_with_the_learning_rate_only_the_optimizer_forgets():
    trained = Trained(rewind="learning_rate")
    for step in trained.prunings:
        for name, value in trained.after[step].items():
            mask = trained.masks[step].get(name)
            before = trained.stepped[step][name]
            assert torch.equal(value, before if mask is None else before * mask)
    assert trained.fresh == trained.prunings


def test_after_rewinding_training_is_that_of_a_fresh_optimizer():
    trained = Trained()
    last = trained.prunings[-1]
    model = net()
    model.load_state_dict(trained.after[last])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(last + 1, TOTAL + 1):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 10, generator=generator)
        y = torch.randint(10, (8,), generator=generator)
        nn.functional.cross_entropy(model(x), y).backward()
        for name, parameter in model.named_parameters():
            if name in LAYERS:
                parameter.grad.mul_(trained.masks[last][name])
        optimizer.step()
        optimizer.zero_grad()
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained.after[-1][name])


# --- what becomes of the ticket ------------------------------------------------------------------


@pytest.mark.parametrize("ticket", ["reinit", "random_mask", "shuffled_inputs"])
def test_only_the_last_round_of_a_control_differs(ticket):
    plain, control = Trained(), Trained(ticket=ticket)
    last = plain.prunings[-1]
    for step in range(last):
        for name, value in plain.after[step].items():
            assert torch.equal(value, control.after[step][name])
    counts = {name: int(mask.sum()) for name, mask in plain.masks[last].items()}
    assert {name: int(mask.sum()) for name, mask in control.masks[last].items()} == counts
    for name in LAYERS:
        assert torch.equal(control.masks[last][name], control.masks[-1][name])
        assert not control.after[-1][name][~control.masks[-1][name]].any()


def test_a_reinitialised_ticket_has_its_mask_and_other_draws_of_the_same_values():
    plain, control = Trained(), Trained(ticket="reinit")
    last, kept = plain.prunings[-1], plain.after[BEGIN]
    for name in LAYERS:
        assert torch.equal(plain.masks[last][name], control.masks[last][name])
        mask = plain.masks[last][name]
        now = control.after[last][name][mask]
        assert np.isin(now.numpy(), kept[name].numpy()).all()
        assert (now == kept[name][mask]).float().mean() < 0.1
    assert torch.equal(control.after[last]["1.running_var"], kept["1.running_var"])


def test_a_random_mask_overlaps_by_chance_and_has_the_weights_of_the_rewind_point():
    plain, control = Trained(), Trained(ticket="random_mask")
    last, kept = plain.prunings[-1], plain.after[BEGIN]
    for name in LAYERS:
        mask, other = control.masks[last][name], plain.masks[last][name]
        assert torch.equal(control.after[last][name], kept[name] * mask)
        overlap = float((mask & other).sum() / other.sum())
        assert overlap == pytest.approx(float(other.float().mean()), abs=0.15)  # 154 of 300


def test_shuffled_inputs_is_the_ticket_on_data_in_another_order():
    plain, control = Trained(), Trained(ticket="shuffled_inputs")
    last = plain.prunings[-1]
    ticket, shuffled = plain.after[last]["0.weight"], control.after[last]["0.weight"]
    columns = [column.tolist() for column in ticket.T]
    order = [columns.index(column.tolist()) for column in shuffled.T]
    assert sorted(order) == list(range(10))
    assert order != list(range(10))
    x = torch.randn(5, 10, dtype=torch.float64)
    assert torch.allclose(x @ shuffled.double().T, x[:, np.argsort(order)] @ ticket.double().T)
    mask = plain.masks[last]["0.weight"][:, order]
    assert torch.equal(control.masks[last]["0.weight"], mask)
    for name in ("3.weight", "0.bias", "1.weight", "3.bias"):
        assert torch.equal(plain.after[last][name], control.after[last][name])


@pytest.mark.parametrize("ticket", ["reinit", "random_mask", "shuffled_inputs"])
def test_controls_are_drawn_from_the_seed_of_the_run(ticket):
    one, two, other = (Trained(seed=s, ticket=ticket) for s in (0, 0, 1))
    assert torch.equal(one.after[-1]["0.weight"], two.after[-1]["0.weight"])
    assert not torch.equal(one.after[-1]["0.weight"], other.after[-1]["0.weight"])


# --- the learning rate and the cost --------------------------------------------------------------


def test_each_round_has_the_rates_of_a_training_of_its_own():
    window = Window.of(method("imp", **TIMES).spec, TOTAL, 4)
    config = compose(["schedule=cosine", "schedule.warmup=25%"]).schedule

    def rates(steps, rounds=None):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = build_schedule(optimizer, config, steps, 4, rounds)
        found = []
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return found

    whole, last = rates(BEGIN + EVERY), rates(BEGIN + 3)
    expected = whole + 2 * whole[BEGIN:] + last[BEGIN:]
    assert rates(TOTAL, window) == expected


QUICK = [
    "data=digits", "model=tiny_mlp", "epochs=6", "data.subset=160", "batch_size=16",
    "plots=false", "quiet=true", "trainer.accelerator=cpu", "method=imp", "method.every=2ep",
    "method.end=4ep", "sparsity=0.75",
]  # fmt: skip


def rows(folder):
    lines = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


def test_a_run_has_the_rates_and_the_cost_of_its_rounds(tmp_path):
    result = run(compose([*QUICK, f"runs={tmp_path}"]))
    assert result["status"] == "finished", result.get("error")
    table = rows(next(tmp_path.iterdir()))
    rates = [float(row["lr"]) for row in table]
    assert rates[:2] == rates[2:4] == rates[4:]
    assert rates[0] > rates[1]
    densities = [1 - float(row["sparsity"]) for row in table]
    assert densities == pytest.approx([1, 0.5, 0.5, 0.25, 0.25, 0.25], abs=1e-3)
    share = result["metrics"]["flops/training_relative"]
    inference = result["metrics"]["flops/inference_relative"]
    assert share == pytest.approx((1 + 0.5 + inference) / 3, abs=2e-3)


def test_the_cost_is_known_beforehand():
    engine = method("imp", sparsity=SPARSITY, **TIMES)
    shapes = {name: torch.Size(shape) for name, shape in (("a", (30, 10)), ("b", (10, 30)))}
    found = list(forecast(engine, shapes, TOTAL, 4))
    assert [stretch.steps for stretch in found] == [7, 5, 5, 3]
    assert [s.nonzeros["a"] for s in found] == [round(300 * 0.8**k) for k in range(4)]
    assert not any(stretch.dense_gradient_steps for stretch in found)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dials", "said"),
    [
        (
            "rigl",
            {"rewind": "weights", "every": "2it"},
            r"method\.rewind=weights: .* prune in several steps",
        ),
        ("static", {"rewind": "weights"}, r"method\.rewind=weights"),
        ("one_shot", {"rewind": "learning_rate"}, r"method\.rewind=learning_rate"),
        ("imp", {"end": "100%", "every": "5it"}, r"method\.end=100%: no step would be left"),
        ("imp", {"rewind": "weight"}, r"method\.rewind=weight: .*weights"),
        ("imp", {"ticket": "lost"}, r"method\.ticket=lost"),
    ],
)
def test_what_makes_no_sense_is_refused(name, dials, said):
    model = net()
    with pytest.raises(UserError, match=said):
        Session(
            method(name, **dials), model, torch.optim.SGD(model.parameters(), lr=0.1),
            total_steps=20,
        )  # fmt: skip


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.5),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_that_forgot_steps_as_a_new_one_does(name):
    used, new = (nn.Parameter(torch.linspace(-1, 1, 12)) for _ in range(2))
    old, fresh = OPTIMIZERS[name]([used]), OPTIMIZERS[name]([new])
    for _ in range(3):
        used.grad = torch.ones(12)
        old.step()
    forget([old])
    with torch.no_grad():
        used.copy_(new)
    for step in range(3):
        used.grad, new.grad = (torch.linspace(-3, 2, 12) * (step + 1) for _ in range(2))
        old.step()
        fresh.step()
    assert torch.equal(used, new)
