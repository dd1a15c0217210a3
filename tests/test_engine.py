"""Exact arithmetic of SET, RigL, SNFS, ITOP, GMP and one-shot, written anew from the papers."""

import math
from fractions import Fraction

import pytest
import torch
from torch import nn

from sparsebench.errors import UserError
from sparsebench.library import method
from sparsebench.sparsity import Composed, DistributionSpec, MethodSpec, Session
from sparsebench.sparsity.exchange import number_to_drop

EVERY_STEP = {"every": "1it", "begin": "0%", "end": "100%", "drop_schedule": "constant"}


class Weights(nn.Module):
    """Layers of given flat weights."""

    def __init__(self, **weights: torch.Tensor | list[float]) -> None:
        super().__init__()
        for name, values in weights.items():
            layer = nn.Linear(len(values), 1, bias=False)
            layer.weight.data.copy_(torch.as_tensor(values))
            self.add_module(name, layer)

    def flat(self, name: str) -> list[float]:
        return self.get_submodule(name).weight.detach().view(-1).tolist()


def begin(net, how, sparsity=0.5, steps=10, lr=0.0, distribution="strict_uniform", **dials):
    """A session of a method (a name of configs/method, or parts) on a network."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    if isinstance(how, str):
        engine = method(how, sparsity=sparsity, distribution=distribution, **dials)
    else:
        engine = Composed(MethodSpec(**{**how, **dials}), sparsity, DistributionSpec(distribution))
    return Session(engine, net, optimizer, total_steps=steps, seed=0)


def step(session, **gradients):
    """One optimizer step with given gradients (zero where none is given)."""
    for name, parameter in session.masks.parameters.items():
        values = gradients.get(name.split(".")[0], torch.zeros(parameter.numel()))
        parameter.grad = torch.as_tensor(values, dtype=torch.float32).view_as(parameter).clone()
    session.after_backward()
    session.state.optimizers[0].step()
    return session.after_step()


def active(session, name):
    return session.masks[f"{name}.weight"].view(-1).nonzero().view(-1).tolist()


# --- RigL --------------------------------------------------------------------------------------

RIGL = {"drop": "magnitude", "grow": "gradient", "initial": "magnitude", **EVERY_STEP}
W, G = [0.5, -0.1, 0.3, 0, 0, 0], [0, 9, 0, 1, -5, 2]


@pytest.mark.parametrize(
    "regrow, fraction, expected, weights",
    [
        ("keep", 1 / 3, [0, 1, 2], [0.5, -0.1, 0.3, 0, 0, 0]),  # 1 goes and is the best to grow
        ("zero", 1 / 3, [0, 1, 2], [0.5, 0, 0.3, 0, 0, 0]),
        ("never", 1 / 3, [0, 2, 4], [0.5, 0, 0.3, 0, 0, 0]),
        ("keep", 2 / 3, [0, 1, 4], [0.5, -0.1, 0, 0, 0, 0]),
        ("zero", 2 / 3, [0, 1, 4], [0.5, 0, 0, 0, 0, 0]),
        ("never", 2 / 3, [0, 4, 5], [0.5, 0, 0, 0, 0, 0]),
        ("keep", 0.0, [0, 1, 2], [0.5, -0.1, 0.3, 0, 0, 0]),
    ],
)
def test_rigl_by_hand(regrow, fraction, expected, weights):
    net = Weights(a=W)
    session = begin(net, RIGL, regrow=regrow, drop_fraction=fraction)
    assert active(session, "a") == [0, 1, 2]
    step(session, a=G)
    assert active(session, "a") == expected
    assert net.flat("a") == pytest.approx(weights)


def test_what_returns_keeps_its_momentum_and_what_is_new_has_none():
    session = begin(Weights(a=W), RIGL, drop_fraction=2 / 3, begin="1it")
    step(session, a=G)  # no update yet: momentum is the masked gradient
    step(session, a=G)
    assert active(session, "a") == [0, 1, 4]
    state = session.state.optimizers[0].state[session.masks.parameters["a.weight"]]
    assert state["momentum_buffer"].view(-1).tolist() == pytest.approx([0, 17.1, 0, 0, 0, 0])


def test_growth_sees_the_gradient_of_its_own_step_only():
    session = begin(Weights(a=W), RIGL, drop_fraction=1 / 3, regrow="never", every="2it")
    assert not session.method.wants_dense_gradient(session.state)
    assert not step(session, a=[0, 0, 0, 99, 0, 0])
    assert session.method.wants_dense_gradient(session.state)
    assert step(session, a=G)
    assert active(session, "a") == [0, 2, 4]
    assert not session.method.observers["gradient"].kept  # no memory held between updates


def test_an_update_that_replaces_the_step_spends_its_gradient():
    net = Weights(a=[0.5, -0.1, 0.3, 0, 0, 0])
    session = begin(net, RIGL, lr=0.1, drop_fraction=1 / 3, when="replace", every="2it")
    step(session, a=[1] * 6)
    moved = net.flat("a")
    assert moved == pytest.approx([0.4, -0.2, 0.2, 0, 0, 0])
    step(session, a=[1, 1, 1, 7, 1, 1])
    assert active(session, "a") == [0, 2, 3]  # of two equal ones the lower index stays, 1 goes
    assert net.flat("a") == pytest.approx([0.4, 0, 0.2, 0, 0, 0])


def test_layers_keep_their_counts_unless_the_scope_is_global():
    nets = {s: Weights(a=[5, 4, 0, 0], b=[3, 0.2, 0.1, 0]) for s in ("layer", "global")}
    grads = {"a": [0, 0, 9, 8], "b": [0, 0, 1, 2]}
    for scope, net in nets.items():
        session = begin(net, RIGL, drop_fraction=0.5, drop_scope=scope, grow_scope=scope)
        assert (active(session, "a"), active(session, "b")) == ([0, 1], [0, 1])
        step(session, **grads)
        # by layer 4 and .2 go; over all .2 and 3 go, and the gradients 9 and 8 grow
        expected = ([0, 2], [0, 3]) if scope == "layer" else ([0, 1, 2, 3], [])
        assert (active(session, "a"), active(session, "b")) == expected


def test_dropped_over_all_and_grown_by_layer_goes_where_there_is_room():
    net = Weights(a=[0.1, 0.2, 0.3, 0.4], b=[5, 6, 7, 8])
    session = begin(
        net, RIGL, sparsity=0.25, drop_fraction=0.5, drop_scope="global", regrow="never"
    )
    assert (active(session, "a"), active(session, "b")) == ([1, 2, 3], [1, 2, 3])
    step(session, a=[9, 0, 0, 0], b=[9, 0, 0, 0])
    # 3 are asked for, but only 2 positions were free: .2 and .3 go, one grows in each layer
    assert (active(session, "a"), active(session, "b")) == ([0, 3], [0, 1, 2, 3])


@pytest.mark.parametrize("rounding", ["floor", "ceil"])
def test_drop_counts_are_exact(rounding):
    spec = MethodSpec(drop_rounding=rounding)
    exact = math.floor if rounding == "floor" else math.ceil
    for tenths in range(1, 10):
        for n in [*range(1, 300), 10**6, 10**9, 10**9 + 1]:
            assert number_to_drop(spec, tenths / 10, n, n) == exact(Fraction(tenths, 10) * n)
    assert number_to_drop(MethodSpec(regrow="never"), 0.5, 10, 3) == 3


def test_a_layer_without_a_gradient_does_not_stop_the_run():
    session = begin(Weights(a=W, b=W), RIGL, drop_fraction=1 / 3)
    session.masks.parameters["a.weight"].grad = torch.tensor([G], dtype=torch.float32)
    session.after_backward()
    session.after_step()
    assert session.masks.nonzeros == {"a.weight": 3, "b.weight": 3}


# --- SET and ITOP ------------------------------------------------------------------------------


def test_set_drops_the_smallest_and_grows_zeros_anywhere_else():
    values = torch.randn(400, generator=torch.Generator().manual_seed(1))
    net = Weights(a=values)
    session = begin(net, "set", sparsity=0.75, drop_fraction=0.3, regrow="never", **EVERY_STEP)
    before = active(session, "a")
    by_size = sorted(before, key=lambda i: abs(float(values[i])))
    step(session)
    after = active(session, "a")
    assert len(before) == len(after) == 100
    assert set(before) - set(after) == set(by_size[:30])
    for i, value in enumerate(net.flat("a")):
        assert value == (float(values[i]) if i in by_size[30:] else 0.0)


def test_random_growth_explores_as_fast_as_it_should():
    # each never active position is hit with k / (n - nnz + k) at an update
    n, density, k, rounds, seeds = 1000, 0.1, 30, 10, 40
    rates = []
    for seed in range(seeds):
        net = Weights(a=torch.randn(n))
        engine = method("set", sparsity=1 - density, drop_fraction=k / (n * density), **EVERY_STEP)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        session = Session(engine, net, optimizer, total_steps=rounds, seed=seed)
        ever = session.masks["a.weight"]
        for _ in range(rounds):
            step(session)
            ever |= session.masks["a.weight"]
        rates.append(int(ever.sum()) / n)
    expected = 1 - (1 - density) * (1 - k / (n - n * density + k)) ** rounds
    assert expected == pytest.approx(0.3516, abs=1e-5)
    deviation = torch.tensor(rates).std() / math.sqrt(seeds)
    assert abs(sum(rates) / seeds - expected) < 4 * deviation


def test_unexplored_positions_are_grown_first():
    net = Weights(a=torch.arange(1.0, 21.0))
    parts = {"drop": "magnitude", "grow": "unexplored", "regrow": "never"}
    session = begin(net, parts, sparsity=0.75, drop_fraction=0.6, **EVERY_STEP)
    ever = set(active(session, "a"))
    for _ in range(5):  # 3 of 5 move each time, and 15 were never active
        step(session)
        new = set(active(session, "a")) - ever
        assert len(new) == 3
        ever |= new
    assert ever == set(range(20))


# --- SNFS --------------------------------------------------------------------------------------


def test_snfs_by_hand():
    net = Weights(a=[4, 3, 2, 1, 0, 0, 0, 0], b=[8, 7, 6, 5, 0, 0, 0, 0])
    session = begin(
        net, "snfs", initial="magnitude", drop_fraction=0.5,
        **{**EVERY_STEP, "every": "2it", "drop_schedule": "constant"},
    )  # fmt: skip
    first = {"a": [1, 1, 1, 1, 1, -9, 0, 1], "b": [2, 2, 2, 2, 3, 4, 5, 6]}
    second = {"a": [1, 1, 1, -3, 8, 0, 7.7, 1], "b": [0] * 8}
    assert session.method.wants_dense_gradient(session.state)
    step(session, **first)
    step(session, **second)
    # momentum .9 first + second: a = 1.9 1.9 1.9 -2.1 8.9 -8.1 7.7 1.9, b = 1.8 ... 2.7 3.6 4.5 5.4
    # mean size over what was active: a = 7.8 / 4 = 1.95, b = 7.2 / 4 = 1.8
    # each drops 2 of 4; of 4 to grow, a gets 4 * 1.95 / 3.75 = 2.08 and b 1.92: 2 and 2
    assert active(session, "a") == [0, 1, 4, 5]
    assert active(session, "b") == [0, 1, 6, 7]


def test_snfs_moves_weights_to_the_layer_with_the_larger_momentum():
    net = Weights(a=[4, 3, 2, 1, 0, 0, 0, 0], b=[8, 7, 6, 5, 0, 0, 0, 0])
    session = begin(net, "snfs", initial="magnitude", drop_fraction=0.5, **EVERY_STEP)
    # the mean is taken before the drop: 1 and 3; after it, it would be .5 and 4.5
    step(session, a=[0.5, 0.5, 1.5, 1.5, 9, 0, 0, 0], b=[4.5, 4.5, 1.5, 1.5, 0, 0, 0, 9])
    assert active(session, "a") == [0, 1, 4]
    assert active(session, "b") == [0, 1, 2, 3, 7]


def test_survivors_share_out_the_growth():
    net = Weights(a=[4, 3, 0.2, 0.1, 0, 0, 0, 0], b=[8, 7, 6, 5, 0, 0, 0, 0])
    parts = {**RIGL, "drop_scope": "global", "redistribute": "survivors"}
    session = begin(net, parts, drop_fraction=0.375)  # 3 of 8: .1, .2 and 3; 1 and 4 survive
    step(session, a=[0, 9, 0, 0, 0, 0, 0, 1], b=[0, 0, 0, 0, 1, 2, 0, 0])
    # 3 in the proportion 1 : 4 is .6 and 2.4
    assert active(session, "a") == [0, 1]
    assert active(session, "b") == [0, 1, 2, 3, 4, 5]


# --- GMP and one-shot --------------------------------------------------------------------------


def largest_remainders(sizes, density):
    exact = [density * size for size in sizes]
    counts = [math.floor(e) for e in exact]
    by_rest = sorted(range(len(sizes)), key=lambda i: counts[i] - exact[i])
    for i in by_rest[: round(density * sum(sizes)) - sum(counts)]:
        counts[i] += 1
    return counts


def test_gmp_prunes_the_smallest_along_the_cubic():
    generator = torch.Generator().manual_seed(3)
    values = {"a": torch.randn(320, generator=generator), "b": torch.randn(37, generator=generator)}
    net = Weights(**values)
    session = begin(net, "gmp", sparsity=0.9, steps=20, begin="4it", end="16it", every="3it")
    kept = {name: set(range(len(v))) for name, v in values.items()}
    for t in range(1, 21):
        changed = step(session)
        assert changed == (t in (7, 10, 13, 16))
        progress = Fraction(max(0, min(t, 16) - 4) // 3, 4)
        sparsity = Fraction(9, 10) * (1 - (1 - progress) ** 3)
        counts = largest_remainders([320, 37], 1 - sparsity)
        for (name, v), count in zip(values.items(), counts, strict=True):
            best = sorted(kept[name], key=lambda i, v=v: -abs(float(v[i])))[:count]
            kept[name] = set(best)
            assert set(active(session, name)) == kept[name]
            assert net.flat(name) == [float(v[i]) if i in kept[name] else 0 for i in range(len(v))]
    assert session.masks.nonzeros == {"a.weight": 32, "b.weight": 4}


@pytest.mark.parametrize("name", ["gmp_global", "one_shot_global"])
def test_global_pruning_keeps_the_top_of_all_weights_together(name):
    generator = torch.Generator().manual_seed(5)
    values = torch.cat([torch.randn(70, generator=generator), torch.randn(30, generator=generator)])
    values[70:] *= 3
    net = Weights(a=values[:70], b=values[70:])
    session = begin(net, name, sparsity=0.8, begin="2it", end="10it", every="4it")
    assert session.masks.sparsity == 0.0
    sparsities = {1: 0.0, 2: 0.0 if "gmp" in name else 0.8}
    sparsities |= {6: 0.8 * (1 - 0.5**3) if "gmp" in name else 0.8, 10: 0.8}
    for t in range(1, 11):
        step(session)
        if t in sparsities:
            top = values.abs().topk(round((1 - sparsities[t]) * 100)).indices.tolist()
            found = active(session, "a") + [70 + i for i in active(session, "b")]
            assert found == sorted(top)


def test_one_shot_prunes_once_each_layer_by_its_own_magnitude():
    net = Weights(a=[1, -5, 2, 3], b=[0.1, 0.4, -0.3, 0.2])
    session = begin(net, "one_shot", steps=8)
    changes = [t for t in range(1, 9) if step(session)]
    assert changes == [6]  # 75% of 8
    assert (net.flat("a"), net.flat("b")) == ([0, -5, 0, 3], pytest.approx([0, 0.4, -0.3, 0]))


def test_pruned_masks_are_nested_though_remainders_would_bring_a_weight_back():
    sizes = {"a": 6, "b": 6, "c": 2}  # of 11: 4.71 4.71 1.57; of 10: 4.29 4.29 1.43
    assert largest_remainders([6, 6, 2], 11 / 14) == [5, 5, 1]
    assert largest_remainders([6, 6, 2], 10 / 14) == [4, 4, 2]
    net = Weights(**{name: torch.arange(1.0, size + 1) for name, size in sizes.items()})
    parts = {"initial": "dense", "sparsity_schedule": "linear", "every": "1it", "end": "100%"}
    session = begin(net, parts, sparsity=8 / 14, steps=8)
    for t in range(1, 9):
        before = dict(session.masks.items())
        step(session)
        assert sum(session.masks.nonzeros.values()) == 14 - t
        assert all((mask <= before[name]).all() for name, mask in session.masks.items())


def test_a_schedule_may_start_sparse_from_dense_weights():
    parts = {"initial": "dense", "initial_sparsity": 0.5, "sparsity_schedule": "linear"}
    parts |= {"every": "1it", "end": "100%"}
    layered = begin(Weights(a=[4, 3, 2, 1], b=[9, 8, 7, 6]), parts, sparsity=0.75, steps=2)
    assert (active(layered, "a"), active(layered, "b")) == ([0, 1], [0, 1])
    together = begin(
        Weights(a=[4, 3, 2, 1], b=[9, 8, 7, 6]), parts, sparsity=0.75, steps=2, scope="global"
    )
    assert (active(together, "a"), active(together, "b")) == ([], [0, 1, 2, 3])


@pytest.mark.parametrize("grow", [None, "gradient"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_falling_sparsity_fills_up(scope, grow):
    values = torch.randn(100, generator=torch.Generator().manual_seed(0))
    net = Weights(a=values)
    drop = {"drop": "magnitude", "grow": grow, "drop_fraction": 0.0} if grow else {}
    parts = {"initial_sparsity": 0.9, "sparsity_schedule": "linear", "scope": scope, **drop}
    session = begin(net, parts, sparsity=0.5, steps=4, every="1it", end="100%")
    gradient = torch.arange(100.0)
    for nonzeros in (20, 30, 40, 50):
        before = set(active(session, "a"))
        step(session, a=gradient)
        after = set(active(session, "a"))
        assert len(after) == nonzeros
        assert before < after
        if grow:
            free = [i for i in range(99, -1, -1) if i not in before]
            assert after - before == set(free[:10])
    assert all(net.flat("a")[i] == 0 for i in after - before)


def test_absent_frozen_weights_may_return():
    net = Weights(a=[4.0, 3.0, 2.0, 1.0])
    parts = {"initial": "dense", "initial_sparsity": 0.25, "sparsity_schedule": "linear"}
    parts |= {"storage": "frozen", "every": "1it", "end": "100%"}
    session = begin(net, parts, sparsity=0.5, steps=2, lr=0.0)
    assert active(session, "a") == [0, 1, 2]
    with torch.no_grad():  # the network learns that what it has matters little
        net.a.weight[0, 1:3] = torch.tensor([0.5, 0.4])
    session.before_forward()
    assert net.flat("a") == pytest.approx([4, 0.5, 0.4, 0])
    step(session)
    assert active(session, "a") == [0, 3]
    session.before_forward()
    assert net.flat("a") == [4, 0, 0, 1]


# --- parts that do not fit ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts, said",
    [
        ({"drop": "magnitude"}, "method.drop=magnitude method.grow=None: the one needs the other"),
        ({"grow": "random"}, "method.drop=None method.grow=random"),
        ({"redistribute": "momentum"}, "method.redistribute=momentum: it needs a method.drop"),
        ({"prune": "magnitud"}, "method.prune=magnitud: .*did you mean 'magnitude'"),
        (
            {"initial": "gradient"},
            "method.initial=gradient: it looks at training data before the first",
        ),
    ],
)
def test_refused(parts, said):
    with pytest.raises(UserError, match=said):
        begin(Weights(a=W), parts)


def test_a_method_object_can_be_used_again():
    engine = method("snfs", sparsity=0.5, every="1it", drop_fraction=0.4)
    masks = []
    for _ in range(2):
        net = Weights(a=torch.arange(1.0, 21.0))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        session = Session(engine, net, optimizer, total_steps=3, seed=4)
        for t in range(3):
            step(session, a=torch.arange(20.0).roll(7 * t))
        masks.append(session.masks.digest())
    assert masks[0] == masks[1]
