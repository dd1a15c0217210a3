"""Dynamics with few ReLUs: gates, folding, bounds, and plans that are proven best."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from sparsebench import control
from sparsebench.config.compose import compose
from sparsebench.data import systems
from sparsebench.data.options import Options
from sparsebench.errors import UserError
from sparsebench.models.relu_dynamics import IDENTITY, RELU, ZERO, Folded, fold, relu_dynamics
from sparsebench.run import run
from sparsebench.training.dynamics import Stages

QUICK = [
    "task=dynamics", "data.args.train=160", "data.args.test=40", "data.args.starts=1",
    "model.hidden=[8,6]", "task.options.steps=2", "task.options.horizon=2", "epochs=10",
    "batch_size=16", "optimizer=adam", "optimizer.lr=0.003", "schedule=constant", "plots=false",
    "quiet=true", "trainer.accelerator=cpu", "method=dense",
]  # fmt: skip


def train(folder, *words):
    result = run(compose([*QUICK, f"runs={folder}", *words]))
    assert result["status"] == "finished", result.get("error")
    return result["metrics"]


def network(*choices, inputs=4, states=2, seed=0):
    """A network whose hidden units are so: a letter each, R(eLU), I(dentity) or Z(ero)."""
    torch.manual_seed(seed)
    model = relu_dynamics((inputs,), states, hidden=[len(each) for each in choices])
    with torch.no_grad():
        for gates, each in zip(model.gate(), choices, strict=True):
            gates.logits.zero_()
            for unit, letter in enumerate(each):
                gates.logits[unit, "RIZ".index(letter)] = 1.0
    return model.eval()


def aim(states=2, horizon=2, effort=0.01):
    return control.Aim(
        goal=torch.linspace(-0.3, 0.4, states), weights=torch.linspace(1.0, 0.5, states),
        limit=0.8, effort=effort, horizon=horizon,
    )  # fmt: skip


MIXED = [
    ("RIZRIZRI", "IZRRZIRI"),
    ("RRRR",),
    ("IIII", "ZZZ"),
    ("ZZZZ", "RRR"),
    ("III", "RZI", "RR"),
]


# --- gates and folding ---------------------------------------------------------------------------


def test_a_unit_is_what_its_likeliest_choice_says():
    model = network("RIZ")
    z = torch.tensor([[-2.0, -3.0, -4.0], [2.0, 3.0, 4.0]])
    gates = model.gate()[0]
    assert gates(z).tolist() == [[0.0, -3.0, 0.0], [2.0, 3.0, 0.0]]
    assert gates.choice().tolist() == [RELU, IDENTITY, ZERO]
    with torch.no_grad():
        gates.logits[0] = torch.tensor([5.0, 1.0, 3.0])
        gates.barred[0] = True
    assert gates.choice()[0] == ZERO


def test_with_all_gates_relu_it_is_the_plain_network_bit_for_bit():
    model = network("RRRRR", "RRRR")
    plain = nn.Sequential(model.fc1, nn.ReLU(), model.fc2, nn.ReLU(), model.fc3)
    x = torch.randn(9, 4)
    assert torch.equal(model.train()(x), x[:, :2] + plain(x))


@pytest.mark.parametrize("hard", [True, False])
def test_drawn_choices_are_those_of_gumbel_softmax(hard):
    model = network("RIZ", "ZR")
    x, temperature = torch.randn(5, 4), 0.7
    torch.manual_seed(3)
    with model.drawn(temperature, hard):
        found = model(x)
        found.sum().backward()
    torch.manual_seed(3)
    h = x
    for layer, gates in zip((model.fc1, model.fc2), model.gate(), strict=True):
        noise = -torch.empty(gates.logits.shape).exponential_().log()
        p = ((gates.logits + noise) / temperature).softmax(1)
        if hard:
            p = nn.functional.one_hot(p.argmax(1), 3).float()
        z = layer(h)
        h = p[:, 0] * z.relu() + p[:, 1] * z
    assert torch.allclose(found, x[:, :2] + model.fc3(h), atol=1e-6)
    assert all(bool(gates.logits.grad.abs().sum() > 0) for gates in model.gate())
    assert not torch.equal(model(x), found)  # the likeliest choices again


@pytest.mark.parametrize("choices", MIXED)
def test_a_folded_network_is_the_gated_one_and_has_only_its_relus(choices):
    model = network(*choices, inputs=5, states=3)
    folded = fold(model)
    relus = sum(each.count("R") for each in choices)
    assert folded.relus == model.relus == relus
    assert sum(layer.out_features for layer in folded.hidden) == relus
    assert folded.out.in_features == 5 + relus
    x = 3.0 * torch.randn(100, 5)
    with torch.no_grad():
        assert torch.allclose(model(x).double(), folded(x.double()), atol=1e-6, rtol=1e-6)
        exact = model.double()(x.double()) - folded(x.double())
    assert float(exact.abs().max()) < 1e-12


def test_identity_everywhere_is_the_least_squares_solution():
    model = network("IIIIII", "IIIII", inputs=4, states=2)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 4, generator=generator)
    y = torch.randn(60, 2, generator=generator) + x[:, :2].abs()
    weights = [p for layer in model.layers() for p in layer.parameters()]
    optimizer = torch.optim.LBFGS(
        weights, max_iter=2000, line_search_fn="strong_wolfe", tolerance_grad=1e-9,
        tolerance_change=1e-14,
    )  # fmt: skip
    model, x, y = model.double(), x.double(), y.double()

    def closure():
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    best = torch.linalg.lstsq(torch.cat([x, torch.ones(60, 1).double()], 1), y).solution
    folded = fold(model)
    assert not len(folded.hidden)
    assert torch.allclose(folded.out.weight, best[:4].T, atol=1e-4)
    assert torch.allclose(folded.out.bias, best[4], atol=1e-4)


def test_restrict_keeps_the_likeliest_relus_and_never_gives_one_back():
    model = network("RRRR", "RRR")
    with torch.no_grad():
        for gates, odds in zip(model.gate(), ([3.0, 1, 2, 4], [2.0, 9, 0]), strict=True):
            gates.logits[:, 0] = torch.tensor(odds)
    model.restrict(4)  # 9, 4, 3, and of the two 2s the first
    assert [gates.barred.tolist() for gates in model.gate()] == [
        [False, True, False, False], [True, False, True],
    ]  # fmt: skip
    with torch.no_grad():
        model.gate()[1].logits[0, 0] = 99.0
    model.restrict(2)
    assert [(~gates.barred).tolist() for gates in model.gate()] == [
        [False, False, False, True], [False, True, False],
    ]  # fmt: skip
    assert int(model.budget) == 2
    model.restrict(0)
    assert model.relus == 0
    assert model.expected_relus().item() == 0.0


def test_the_budget_falls_by_the_same_share_in_each_stage():
    stages = Stages(units=64, relus=4, stages=4, warmup=0.2, freeze=0.8)
    assert [stages.budget(k) for k in range(1, 6)] == [32, 16, 8, 4, 4]
    assert [stages.stage(p) for p in (0.0, 0.19, 0.2, 0.34, 0.35, 0.79, 0.8, 1.0)] == [
        0, 0, 1, 1, 2, 4, 5, 5,
    ]  # fmt: skip
    assert Stages(64, 0, 3, 0.2, 0.8).budget(3) == 0


# --- plans ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("choices", MIXED)
def test_bounds_hold_for_all_inputs_of_the_box(choices):
    folded = fold(network(*choices))
    low, high = np.array([-1.0, 0.5, -0.8, 0.2]), np.array([0.5, 0.5, 0.8, 2.0])
    least, greatest, below, above = control.bounds(folded, low, high)
    x = torch.from_numpy(low + (high - low) * np.random.default_rng(0).random((4000, 4)))
    corners = torch.tensor(list(itertools.product(*zip(low, high, strict=True))))
    features, seen = torch.cat([x, corners]), []
    for layer in folded.hidden:
        seen.append(layer(features))
        features = torch.cat([features, seen[-1].relu()], 1)
    z = torch.cat([features[:, :0], *seen], 1).numpy()
    ends = folded.out(features).numpy()
    assert least.shape == (folded.relus,)
    assert (z >= least - 1e-12).all()
    assert (z <= greatest + 1e-12).all()
    assert (ends >= below - 1e-12).all()
    assert (ends <= above + 1e-12).all()
    if not folded.hidden or len(folded.hidden) == 1:  # of one layer the bounds are reached
        assert np.allclose(z.min(0), least)
        assert np.allclose(z.max(0), greatest)


def by_enumeration(net: Folded, start, goal) -> float:
    """The least cost over all patterns of which ReLUs are on, a linear program for each."""
    from scipy.optimize import linprog

    n, m, steps = len(goal.goal), net.inputs - len(goal.goal), goal.horizon
    eye = np.eye(m * steps)
    layers = [(layer.weight.numpy(), layer.bias.numpy()) for layer in net.hidden]
    out, shift = net.out.weight.numpy(), net.out.bias.numpy()
    best = np.inf
    for pattern in itertools.product([False, True], repeat=net.relus * steps):
        on = iter(pattern)
        x = (np.zeros((n, m * steps)), start.numpy().astype(float))  # affine in the controls
        rows, ends, states = [], [], []
        for t in range(steps):
            f = (np.concatenate([x[0], eye[t * m : (t + 1) * m]]), np.r_[x[1], np.zeros(m)])
            for weight, bias in layers:
                z = (weight @ f[0], weight @ f[1] + bias)
                y = [np.zeros_like(z[0]), np.zeros_like(z[1])]
                for i in range(len(bias)):
                    sign = -1.0 if next(on) else 1.0
                    rows.append(sign * z[0][i])  # z <= 0 if off, z >= 0 if on
                    ends.append(-sign * z[1][i])
                    if sign < 0:
                        y[0][i], y[1][i] = z[0][i], z[1][i]
                f = (np.concatenate([f[0], y[0]]), np.r_[f[1], y[1]])
            x = (out @ f[0], out @ f[1] + shift)
            states.append(x)
        k, c = n * steps, m * steps  # variables: controls, |x - goal|, |u|
        price = np.r_[np.zeros(c), np.tile(goal.weights.numpy(), steps), np.full(c, goal.effort)]
        a = [np.r_[row, np.zeros(k + c)] for row in rows]
        b = list(ends)
        for t, (linear, offset) in enumerate(states):
            for i in range(n):
                for sign in (1.0, -1.0):
                    size = np.zeros(k + c)
                    size[t * n + i] = -1.0
                    a.append(np.r_[sign * linear[i], size])
                    b.append(sign * (float(goal.goal[i]) - offset[i]))
        for j in range(c):
            for sign in (1.0, -1.0):
                size = np.zeros(k + c)
                size[k + j] = -1.0
                a.append(np.r_[sign * eye[j], size])
                b.append(0.0)
        box = [(-goal.limit, goal.limit)] * c + [(0, None)] * (k + c)
        found = linprog(price, A_ub=np.array(a), b_ub=np.array(b), bounds=box)
        if found.status == 0:
            best = min(best, found.fun)
    return best


@pytest.mark.parametrize(
    ("choices", "horizon", "seed"),
    [(("RRRIZ",), 2, 0), (("RIR", "RIZR"), 2, 1), (("RRIIZ", "IR"), 1, 2), (("IIZ",), 3, 3)],
)
def test_the_plan_is_the_best_of_all_patterns(choices, horizon, seed):
    net = fold(network(*choices, seed=seed))
    goal, start = aim(horizon=horizon), torch.tensor([0.7, -1.1])
    program = control.Program(net, start, goal)
    assert program.binaries == net.relus * horizon <= 12
    plan = control.plan_milp(net, start, goal)
    assert plan.optimal
    assert plan.cost == pytest.approx(by_enumeration(net, start, goal), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_plans_cost_is_that_of_the_network_and_no_sample_is_better(seed):
    net, goal = fold(network("RRIRZR", "RZRI", seed=seed)), aim(horizon=3)
    start = torch.randn(2, generator=torch.Generator().manual_seed(seed))
    plan = control.plan_milp(net, start, goal, nodes=100_000)
    assert plan.optimal
    assert plan.controls.shape == (3, 2)
    assert float(plan.controls.abs().max()) <= goal.limit
    predicted = float(control.predicted_cost(net, start, plan.controls[None], goal))
    assert predicted == pytest.approx(plan.cost, abs=1e-6)
    stream = torch.Generator().manual_seed(0)
    sampled = control.plan_cem(net, start, goal, 2, stream, samples=500, iterations=6)
    shot = control.plan_cem(net, start, goal, 2, stream, samples=500, iterations=1)
    assert plan.cost - 1e-6 <= sampled.cost < shot.cost
    assert sampled.cost < 1.2 * plan.cost + 0.05


def test_without_relus_the_program_is_linear():
    program = control.Program(fold(network("IIZ")), torch.zeros(2), aim(horizon=4))
    assert program.binaries == 0


def test_where_no_plan_is_found_in_time_the_controls_are_zero(monkeypatch):
    class Nothing:
        x, status = None, 1

    monkeypatch.setattr("scipy.optimize.milp", lambda *args, **kwargs: Nothing())
    plan = control.plan_milp(fold(network("RR")), torch.zeros(2), aim(horizon=3))
    assert plan.controls.tolist() == [[0.0, 0.0]] * 3
    assert not plan.optimal


def test_closed_loop_adds_the_true_costs_and_plans_from_the_true_state():
    seen = []

    def planner(x):
        seen.append(x.tolist())
        return control.Plan(torch.full((2, 2), 0.5), 0.0, optimal=len(seen) < 3)

    goal = control.Aim(torch.zeros(2), torch.tensor([1.0, 2.0]), 1.0, 0.1, 2)
    found = control.closed_loop(lambda x, u: x - u, torch.tensor([[1.0, 1.0]]), goal, 3, planner)
    assert seen == [[1.0, 1.0], [0.5, 0.5], [0.0, 0.0]]
    assert found.cost == pytest.approx(1.5 + 0.0 + 1.5 + 3 * 0.1)
    assert found.final == pytest.approx(1.5)
    assert found.optimal == pytest.approx(2 / 3)


# --- systems -------------------------------------------------------------------------------------


def test_a_piecewise_system_is_affine_within_a_piece_and_switches_at_its_planes():
    system = systems.piecewise({"args": {"relus": 1}})
    x = torch.linspace(-2, 2, 401, dtype=torch.float64)
    line = torch.stack([x, torch.full_like(x, 0.3)], 1)
    bends = system.step(line, torch.zeros(401, 2).double()).diff(n=2, dim=0).abs().sum(1) > 1e-9
    assert 1 <= int(bends.sum()) <= 2  # one plane is crossed, maybe at a point of the line
    none = systems.piecewise({"args": {"relus": 0}})
    a, b = torch.randn(2, 5, 2)
    u = torch.zeros(5, 2)
    assert torch.allclose(none.step(a + b, u), none.step(a, u) + none.step(b, u), atol=1e-6)


def test_a_pusher_moves_the_object_straight_away_and_only_on_contact():
    system = systems.pushing({"args": {"radius": 0.5}})
    x = torch.tensor([[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.6]])
    u = torch.tensor([[0.3, 0.0], [0.7, 0.0], [0.0, 0.2]])
    wanted = torch.tensor([[0.3, 0, 1.0, 0], [0.7, 0, 1.2, 0], [0, 0.2, 0, 0.7]])
    assert torch.allclose(system.step(x, u), wanted, atol=1e-6)


def test_trajectories_are_the_systems_own_and_shared_out_without_overlap():
    system = systems.piecewise({"args": {"train": 20, "test": 6, "length": 3}})
    sets = systems.trajectories(system, Options(name="piecewise", validation=0.25))
    assert [len(part) for part in (sets.train, sets.validation, sets.test)] == [15, 5, 6]
    x, u, y = sets.train.tensors
    for t in range(3):
        x = system.step(x, u[:, t])
        assert torch.equal(x, y[:, t])
    first = torch.cat([part.tensors[0] for part in (sets.train, sets.validation, sets.test)])
    assert len(first.unique(dim=0)) == 26
    assert (sets.input_shape, sets.num_classes) == ((4,), 2)


# --- whole runs ----------------------------------------------------------------------------------


def test_a_run_keeps_no_more_relus_than_asked_and_says_what_it_planned(tmp_path):
    found = train(tmp_path, "task.options.relus=3")
    assert found["relus"] <= 3 == found["relus/true"]
    assert found["binaries"] == found["relus"] * 2
    assert found["folded/error"] < 1e-4
    inputs, relus = 4, found["relus"]
    assert found["folded/parameters"] >= 2 * (inputs + relus + 1) + relus * (inputs + 1)
    assert found["closed_loop/optimal"] == 1.0
    assert found["seconds/planning"] > 0


def test_few_relus_predict_better_than_none(tmp_path):
    words = [
        "task.options.planner=none",
        "epochs=20",
        "data.args.train=500",
        "model.hidden=[16]",
        "optimizer.lr=0.01",
    ]
    error = {n: train(tmp_path, *words, f"task.options.relus={n}")["test/one_step"] for n in (0, 4)}
    assert error[4] < 0.5 * error[0]
    assert "closed_loop/cost" not in train(tmp_path, *words, "task.options.relus=4")  # from disk


def test_without_a_number_all_relus_stay(tmp_path):
    found = train(tmp_path, "task.options.planner=shooting", "epochs=1")
    assert found["relus"] == 14
    assert "binaries" not in found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task.options.relus=15"], "task.options.relus=15: the network has 14 hidden units"),
        (["task.options.relus=-1"], "task.options.relus=-1: a whole number"),
        (["task.options.freeze=0.2"], "task.options.freeze=0.2: must be above"),
        (["task.options.planner=mip"], "task.options.planner=mip: one of milp, cem"),
        (["model.hidden=[]"], "model.hidden=.*a list of whole numbers"),
        (["data.subset=3"], "data.subset=3.0: set data.args.train"),
        (["data.validation=160"], "data.validation=160.0: of 160 trajectories"),
    ],
)
def test_what_can_not_work_is_refused(tmp_path, words, said):
    with pytest.raises(UserError, match=said):
        run(compose([*QUICK, f"runs={tmp_path}", *words]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task=dynamics", "data=planted"], "task=dynamics needs a system"),
        (["task=dynamics", "model=mlp"], "its hidden units have no gates"),
        (["data=digits", "model=relu_dynamics"], "model=relu_dynamics: its data are states"),
    ],
)
def test_other_data_and_models_are_refused(tmp_path, words, said):
    with pytest.raises(UserError, match=said):
        run(compose([*words, f"runs={tmp_path}", "method=dense"]))
