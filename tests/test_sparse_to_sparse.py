"""DeepR, DSR, Top-KAST and SET by signs: exact arithmetic, from the papers and by hand."""

import pytest
import torch
from test_engine import EVERY_STEP, Weights, active, begin, step
from torch import nn

from sparsebench.errors import UserError
from sparsebench.library import method
from sparsebench.models.tiny import tiny_mlp
from sparsebench.sparsity import Session
from sparsebench.sparsity.flops import layer_flops
from sparsebench.sparsity.forecast import forecast
from sparsebench.sparsity.training_flops import TrainingFlops, top_kast_closed_form


def random_weights(seed=0, **sizes):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(size, generator=generator) for name, size in sizes.items()}


# --- SET by signs ------------------------------------------------------------------------------

BY_SIGN = {"drop": "signwise", "grow": "random", "initial": "magnitude", "regrow": "never"}


def test_each_sign_loses_its_own_fraction():
    small, large = [0.1, 0.2, 0.3, 0.4], [-9, -8, -7, -6, -5, -4]
    session = begin(
        Weights(a=[*small, *large, *[0] * 10]), BY_SIGN, drop_fraction=0.5, **EVERY_STEP
    )
    step(session)
    kept = [i for i in active(session, "a") if i < 10]
    assert kept == [2, 3, 4, 5, 6]  # by size alone .4 and -5 would have gone, and -7 stayed


@pytest.mark.parametrize("seed", range(5))
def test_dropped_is_never_larger_than_kept_of_its_sign(seed):
    net = Weights(**random_weights(seed, a=300))
    values = net.flat("a")
    session = begin(net, BY_SIGN, sparsity=0.6, drop_fraction=0.3, **EVERY_STEP)
    before = active(session, "a")
    step(session)
    kept = [i for i in before if i in active(session, "a")]
    assert (len(before), len(kept), len(active(session, "a"))) == (120, 84, 120)
    for sign in (-1, 1):
        stay = [abs(values[i]) for i in kept if values[i] * sign > 0]
        gone = [abs(values[i]) for i in before if values[i] * sign > 0 and i not in kept]
        assert max(gone) < min(stay)
        assert abs(len(gone) - 0.3 * (len(gone) + len(stay))) < 1


# --- values of new connections -----------------------------------------------------------------


def grown(how, scale=1.0, values=None, gradient=None):
    """Values of new connections, and the layer before and after them."""
    values = random_weights(a=400)["a"] if values is None else values
    net = Weights(a=values)
    parts = {"drop": "magnitude", "grow": "random", "initial": "magnitude", "regrow": "never"}
    session = begin(net, parts, drop_fraction=0.5, grown=how, grown_scale=scale, **EVERY_STEP)
    before = net.flat("a")
    old = set(active(session, "a"))
    step(session, a=torch.zeros(len(values)) if gradient is None else gradient)
    new = [i for i in active(session, "a") if i not in old]
    state = session.state.optimizers[0].state[session.masks.parameters["a.weight"]]
    assert not state["momentum_buffer"].view(-1)[new].any()
    assert len(new) == len(values) // 4
    return [net.flat("a")[i] for i in new], before, new


def test_new_connections_may_start_from_initial_values():
    values = random_weights(a=400)["a"]
    found, _, _ = grown("initial", values=values)
    assert set(found) <= set(values.tolist())  # of all places, also those that began absent
    assert len(set(found)) > 50
    halved, _, _ = grown("initial", 0.5, values=values)
    assert halved == pytest.approx([v / 2 for v in found])


def test_new_connections_may_start_at_random():
    normal, before, _ = grown("normal")
    kept = torch.tensor([v for v in before if v])
    assert float(torch.tensor(normal).std() / kept.std(correction=0)) == pytest.approx(1, abs=0.2)
    uniform, _, _ = grown("uniform")
    bound = float(kept.abs().mean())
    assert -bound <= min(uniform) < -0.8 * bound
    assert 0.8 * bound < max(uniform) <= bound


def test_new_connections_may_start_downhill():
    gradient = torch.arange(400.0) - 200.5
    found, _, new = grown("gradient", 0.1, gradient=gradient)
    assert found == pytest.approx([-0.1 * (i - 200.5) for i in new])
    found, _, new = grown("gradient_sign", 0.1, gradient=gradient)
    assert found == pytest.approx([0.1 if i <= 200 else -0.1 for i in new])


# --- DeepR -------------------------------------------------------------------------------------


def deepr(net, lr=0.1, options=None, **dials):
    options = {"l1": 0.0, "noise": 0.0} | (options or {})
    return begin(net, "deepr", lr=lr, options=options, **dials)


def test_what_crosses_zero_goes_and_as_many_come_at_zero():
    net = Weights(a=[0.5, -0.1, 0.3, 0.2, -0.4, 0.6, 0.1, -0.2])
    session = deepr(net, initial="magnitude")
    assert active(session, "a") == [0, 2, 4, 5]
    step(session, a=[6, 0, -1, 0, -5, 0, 0, 0])  # .5 - .6 < 0; .3 + .1; -.4 + .5 > 0; .6
    after = active(session, "a")
    assert len(after) == 4
    assert {2, 5} < set(after)
    assert net.flat("a") == pytest.approx([0, 0, 0.4, 0, 0, 0.6, 0, 0])
    state = session.state.optimizers[0].state[session.masks.parameters["a.weight"]]
    moved = [i for i, m in enumerate(state["momentum_buffer"].view(-1).tolist()) if m]
    assert moved == [2]  # those that came are new, though they may be where others went


def test_l1_pulls_active_weights_towards_zero_and_new_ones_to_sleep():
    net = Weights(a=[0.5, -0.4, 0.3, -0.2])
    session = deepr(net, lr=1.0, options={"l1": 0.05}, initial="magnitude")
    step(session)
    assert net.flat("a") == pytest.approx([0.45, -0.35, 0, 0])


def test_noise_is_that_of_the_paper_at_its_temperature():
    lr, noise = 0.1, 0.01
    net = Weights(a=torch.ones(20_000))
    session = deepr(net, lr=lr, options={"noise": noise})
    before = session.masks["a.weight"].view(-1)
    step(session)
    moved = (net.a.weight.detach().view(-1) - 1.0)[before]
    temperature = lr * noise**2 / 2
    assert float(moved.std()) == pytest.approx((2 * lr * temperature) ** 0.5, rel=0.03)
    assert not net.a.weight.detach().view(-1)[~before].any()


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_counts_and_signs_hold_after_each_of_many_steps(scope):
    net = Weights(**random_weights(a=200, b=100))
    signs = {name: torch.tensor(net.flat(name)) >= 0 for name in "ab"}
    options = {"l1": 1e-2, "noise": 1.0}
    session = deepr(net, steps=30, sparsity=0.7, options=options, grow_scope=scope)
    moved = 0
    for _ in range(30):
        before = session.masks.nonzeros
        moved += step(session)
        after = session.masks.nonzeros
        assert sum(after.values()) == 90
        assert scope == "global" or after == {"a.weight": 60, "b.weight": 30}
        moved += before != after
        for name, positive in signs.items():
            weight = net.get_submodule(name).weight.detach().view(-1)
            assert not weight[positive].lt(0).any()
            assert not weight[~positive].gt(0).any()
    assert moved > (30 if scope == "global" else 20)


# --- DSR ---------------------------------------------------------------------------------------


def dsr(net, threshold, sparsity=0.5, **dials):
    options = {"threshold": threshold, **dials.pop("options", {})}
    dials = {"initial": "magnitude", **EVERY_STEP, **dials}
    return begin(net, "dsr", sparsity=sparsity, options=options, **dials)


def test_all_below_the_threshold_go_and_survivors_share_the_growth():
    net = Weights(a=[4, 3, 0.2, 0.1, 0, 0, 0, 0], b=[8, 7, 6, 0.05, 0, 0, 0, 0])
    session = dsr(net, 0.15, drop_fraction=0.25)
    step(session)  # .1 and .05 go, 3 and 3 survive: one each
    assert session.masks.nonzeros == {"a.weight": 4, "b.weight": 4}
    assert set(active(session, "a")) > {0, 1, 2}
    assert 3 not in active(session, "a")
    assert 3 not in active(session, "b")
    assert session.method.threshold == 0.15  # just the 2 of 8 that were asked for


@pytest.mark.parametrize("asked, factor", [(0.25, 1), (0.2, 0.5), (0.31, 2), (0.23, 1), (0.27, 1)])
def test_the_threshold_follows_the_number_dropped(asked, factor):
    net = Weights(a=[4, 3, 0.2, 0.1, 0, 0, 0, 0], b=[8, 7, 6, 0.05, 0, 0, 0, 0])
    session = dsr(net, 0.15, drop_fraction=asked)  # 2 of 8 go
    step(session)
    assert session.method.threshold == 0.15 * factor
    again = dsr(Weights(a=net.flat("a"), b=net.flat("b")), 0.7)
    again.method.load_state_dict(session.method.state_dict())
    assert again.method.threshold == session.method.threshold


def test_layers_vary_and_their_sum_does_not():
    net = Weights(**random_weights(a=200, b=200))
    with torch.no_grad():
        net.a.weight.mul_(0.01)
    session = dsr(net, 0.02, sparsity=0.8, steps=8, drop_fraction=0.2)
    for _ in range(8):
        step(session)
        assert sum(session.masks.nonzeros.values()) == 80
    assert session.masks.nonzeros["a.weight"] < 20 < session.masks.nonzeros["b.weight"]


def test_no_layer_is_lost_and_no_more_goes_than_has_room():
    net = Weights(a=[0.1, 0.3, 0.2, 0, 0, 0], b=[9, 8, 7, 0, 0, 0])
    session = dsr(net, 1.0, drop_fraction=0.3)
    step(session)
    assert 1 in active(session, "a")  # the largest stays
    full = Weights(a=[0.1, 0.2, 0.3, 0.4, 5, 0], b=[6, 7, 8, 9, 5, 0])
    session = dsr(full, 100.0, sparsity=1 / 6, drop_fraction=0.3)
    step(session)
    assert sum(session.masks.nonzeros.values()) == 10


def test_the_exact_variant_drops_the_fraction_over_all_layers():
    net = Weights(a=[4, 3, 0.2, 0.1, 0, 0, 0, 0], b=[8, 7, 6, 5, 0, 0, 0, 0])
    session = begin(net, "dsr_exact", initial="magnitude", **{**EVERY_STEP, "drop_fraction": 0.25})
    step(session)  # .1 and .2 go; 2 and 4 survive, so .67 and 1.33 of 2
    assert session.masks.nonzeros == {"a.weight": 3, "b.weight": 5}


# --- Top-KAST ----------------------------------------------------------------------------------


def topkast(net, sparsity=0.75, lr=0.0, **options):
    dials = {"every": options.pop("every", "1it"), "end": options.pop("end", "100%")}
    decay = options.pop("weight_decay", 0.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=decay)
    engine = method(
        "topkast", sparsity=sparsity, distribution="strict_uniform", options=options, **dials
    )
    return Session(engine, net, optimizer, total_steps=10, seed=0)


def forward_and_back(session, gradient):
    """A step, with the gradient given; returns what the forward pass saw."""
    session.before_forward()
    parameter = session.masks.parameters["a.weight"]
    seen = parameter.detach().view(-1).tolist()
    parameter.grad = torch.tensor(gradient).view_as(parameter).clone()
    session.after_backward()
    passed = parameter.grad.view(-1).tolist()
    session.state.optimizers[0].step()
    session.after_step()
    return seen, passed


@pytest.mark.parametrize("penalty, pulls", [("l2", [2, 4, 0, 0]), ("l1", [1, 4, 0, 0])])
def test_the_exploration_loss_by_hand(penalty, pulls):
    net = Weights(a=[2, 1, 0.5, 0.1])  # D = 1/4: A is 0, B is 0 and 1
    session = topkast(net, backward_sparsity=0.5, penalty=penalty, strength=1.0)
    seen, passed = forward_and_back(session, [0.0] * 4)
    assert seen == [2, 0, 0, 0]
    assert passed == pytest.approx(pulls)
    if penalty == "l2":  # the loss is half of theta times its gradient: (4 + 1 / .25) / 2
        theta = [2, 1, 0.5, 0.1]
        assert sum(t * g for t, g in zip(theta, passed, strict=True)) / 2 == pytest.approx(4)


def test_outside_b_nothing_moves_at_all():
    values = random_weights(a=200)["a"]
    net = Weights(a=values)
    session = topkast(net, sparsity=0.8, lr=0.1, weight_decay=0.1, every="3it", strength=0.01)
    left = 0
    for t in range(10):
        reach = session.masks.reach.factors["a.weight"].view(-1).bool()
        present = session.masks["a.weight"].view(-1)
        assert (int(present.sum()), int(reach.sum())) == (40, 80 if t < 9 else 40)
        assert not (present & ~reach).any()
        before = session.masks.dense("a.weight").view(-1).clone()
        seen, passed = forward_and_back(session, torch.randn(200).tolist())
        assert torch.equal(torch.tensor(seen), before * present)
        assert not torch.tensor(passed)[~reach].any()
        after = session.masks.dense("a.weight").view(-1)
        assert torch.equal(after[~reach], before[~reach])
        assert (after[reach] != before[reach]).all()
        left += int((reach & ~session.masks.reach.factors["a.weight"].view(-1).bool()).sum())
    assert left > 0  # momentum was there to move what left B


def test_with_all_of_b_and_no_penalty_it_is_a_straight_through_estimate():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))
    theta = {n: p.detach().clone().requires_grad_() for n, p in net.named_parameters()}
    plain = torch.optim.SGD(theta.values(), lr=0.1, momentum=0.9)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    engine = method(
        "topkast", sparsity=0.75, every="1it", distribution="strict_uniform",
        options={"backward_sparsity": 0.0, "strength": 0.0},
    )  # fmt: skip
    session = Session(engine, net, optimizer, total_steps=8)
    for t in range(7):
        x, y = torch.randn(5, 12), torch.randint(3, (5,))
        shown = {}
        for name, value in theta.items():
            mask = torch.ones_like(value)
            if value.ndim == 2:
                bound = value.detach().abs().view(-1).topk(value.numel() // 4).values[-1]
                mask = (value.detach().abs() >= bound).float()
                assert torch.equal(session.masks[name], mask.bool()), t
            shown[name] = (value.detach() * mask).requires_grad_()
        loss = nn.functional.cross_entropy(torch.func.functional_call(net, shown, (x,)), y)
        for value, gradient in zip(
            theta.values(), torch.autograd.grad(loss, list(shown.values())), strict=True
        ):
            value.grad = gradient
        plain.step()
        session.before_forward()
        nn.functional.cross_entropy(net(x), y).backward()
        session.after_backward()
        optimizer.step()
        optimizer.zero_grad()
        session.after_step()
        for name, value in theta.items():
            found = session.masks.dense(name) if value.ndim == 2 else net.get_parameter(name)
            assert torch.allclose(found, value, atol=1e-6)


def test_its_cost_is_counted_and_foretold():
    model = tiny_mlp((1, 8, 8), 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = method(
        "topkast", sparsity=0.8, every="2it", end="50%", options={"backward_sparsity": 0.5}
    )
    session = Session(engine, model, optimizer, total_steps=12, seed=0)
    flops = layer_flops(model, (1, 8, 8), names=session.masks.parameters)
    total = TrainingFlops(flops.total)
    by_hand = 0.0
    for _ in range(12):
        forward = flops.forward(session.masks.densities)
        wide = {n: float(f.mean()) for n, f in session.masks.reach.factors.items()}
        by_hand += top_kast_closed_form(forward, flops.forward(wide))
        session.before_forward()
        model(torch.randn(2, 1, 8, 8)).sum().backward()
        session.after_backward()
        parts = {n: flops.forward(d) for n, d in session.gradient_densities.items()}
        total.add(forward, 1, dense_gradient=session.dense_gradient, **parts)
        optimizer.step()
        session.after_step()
    assert total.total == pytest.approx(by_hand)
    assert total.dense_gradient_steps == 0
    shapes = {n: p.shape for n, p in session.masks.parameters.items()}
    foretold = TrainingFlops(flops.total)
    stretches = list(forecast(engine, shapes, 12, 12))
    assert [s.steps for s in stretches] == [2, 2, 2, 6]
    for s in stretches:
        kept = {n: k / shapes[n].numel() for n, k in s.nonzeros.items()}
        parts = {n: flops.forward(d) for n, d in s.gradients.items()}
        foretold.add(flops.forward(kept), s.steps, **parts)
    assert foretold.total == pytest.approx(by_hand)
    last = stretches[-1]  # it explores no more: B is A
    wide = last.gradients["weight_gradient"]
    assert {n: round(d * shapes[n].numel()) for n, d in wide.items()} == last.nonzeros


@pytest.mark.parametrize(
    "name, dials, said",
    [
        ("topkast", {"options": {"backward_sparsity": 0.9}},
         "method.options.backward_sparsity=0.9: at most the sparsity of the forward pass, 0.5"),
        ("topkast", {"options": {"penalty": "l3"}}, "method.options.penalty=l3: one of l2, l1"),
        ("topkast", {"storage": "zeroed"}, "method.storage=zeroed"),
        ("deepr", {"options": {"l2": 1.0}}, "method.options.l2=1.0: no such option; .*l1"),
        ("deepr", {"options": {"noise": -1.0}}, "method.options.noise=-1.0: a number in"),
        ("dsr", {"options": {"threshold": 0.0}}, "method.options.threshold=0.0: a number in"),
        ("deepr", {"drop": "magnitude"}, "method.drop=magnitude: .*aligned"),
        ("set", {"grown": "initia"}, "method.grown=initia: .*did you mean 'initial'"),
    ],
)  # fmt: skip
def test_refused(name, dials, said):
    with pytest.raises(UserError, match=said):
        method(name, sparsity=0.5, **dials)
