"""STR: learned thresholds, their gradients and what they find, by hand from the paper."""

import math

import pytest
import torch
from given_weights import Layers, active, begin, dense, step
from torch import nn

from sparsebench.errors import UserError
from sparsebench.library import method

# --- STR ---------------------------------------------------------------------------------------

LOGIT = math.log(0.1 / 0.9)


def thresholds(session):
    return [float(s) for s in session.method._s.values.values()]


@pytest.mark.parametrize(
    "gradient, slope", [([1.0, 1.0, 1.0], 0.0), ([1.0, -1.0, 1.0], -0.18), ([0, 0, 5.0], 0.0)]
)
def test_str_by_hand(gradient, slope):
    net, seen = Layers(a=[0.5, -0.3, 0.05]), {}
    session = begin(net, "str", options={"init": LOGIT}, lr=0.01)
    assert active(session) == [0, 1]
    step(session, seen, a=gradient)
    assert seen["a"] == pytest.approx([0.4, -0.2, 0.0])
    assert seen["a"][2] == 0.0
    assert thresholds(session) == pytest.approx([LOGIT - 0.01 * slope])
    expected = [0.5 - 0.01 * gradient[0], -0.3 - 0.01 * gradient[1], 0.05]
    assert dense(session) == pytest.approx(expected)


def test_str_has_the_gradient_of_autograd():
    torch.manual_seed(0)
    weight, toward = torch.randn(40), torch.randn(40)
    s = torch.tensor(-0.5, requires_grad=True)
    free = weight.clone().requires_grad_()
    (free.sign() * torch.relu(free.abs() - torch.sigmoid(s)) * toward).sum().backward()
    net = Layers(a=weight.tolist())
    session = begin(net, "str", options={"init": -0.5}, lr=0.5)
    step(session, a=toward.tolist())
    assert thresholds(session) == pytest.approx([-0.5 - 0.5 * float(s.grad)], rel=1e-5)
    assert torch.allclose(net.a.weight.detach().view(-1), weight - 0.5 * free.grad)


def test_decay_alone_brings_thresholds_to_life():
    """s(t) = s0 (1 - rate x decay)^t while nothing reaches it; the weights decay as well."""
    found = []
    for decay in (None, 0.0):
        net = Layers(a=[0.5, 0.004])
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5, weight_decay=0.1)
        options = {"init": -3200.0, "decay": decay}
        session = begin(net, "str", options=options, optimizer=optimizer, steps=200)
        for t in range(1, 113):
            step(session)
            if t in (100, 112):
                found.append((thresholds(session)[0], active(session)))
    assert found[0] == (pytest.approx(-3200 * 0.95**100, rel=1e-4), [0, 1])
    assert found[1] == (pytest.approx(-3200 * 0.95**112, rel=1e-4), [0])  # g = 3.6e-5
    assert found[2] == found[3] == (-3200.0, [0, 1])


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_thresholds_are_trained_as_parameters_of_the_network_would_be(kind):
    """As in the official code, where s is one of the network's parameters."""

    def made(parameters):
        if kind == "sgd":
            return torch.optim.SGD(
                parameters, lr=0.1, momentum=0.875, weight_decay=0.01, nesterov=True
            )
        name = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]
        return name(parameters, lr=0.1, betas=(0.8, 0.9), weight_decay=0.01)

    weight = torch.linspace(-1, 1, 21)
    ours = Layers(a=weight.tolist())
    session = begin(ours, "str", options={"init": -1.0}, optimizer=made(ours.parameters()))
    free, s = nn.Parameter(weight.clone()), nn.Parameter(torch.tensor(-1.0))
    theirs = made([free, s])
    for t in range(6):
        (free.sign() * torch.relu(free.abs() - s.sigmoid())).square().mul(t + 1).sum().backward()
        step(session, a=lambda seen, t=t: 2 * (t + 1) * seen)
        theirs.step()
        theirs.zero_grad()
        for group in (*theirs.param_groups, *session.state.optimizers[0].param_groups):
            group["lr"] *= 0.7
    assert torch.allclose(ours.a.weight.detach().view(-1), free.detach(), atol=1e-6)
    assert thresholds(session) == pytest.approx([s.item()], abs=1e-6)


def test_scheduled_thresholds_meet_the_sparsity_and_keep_their_differences():
    torch.manual_seed(0)
    net = Layers(a=(0.1 * torch.randn(500)).tolist(), b=(0.2 * torch.randn(300)).tolist())
    options = {"init": -5.0, "level": "scheduled"}
    session = begin(
        net, "str", 0.8, steps=8, lr=0.1, options=options, sparsity_end=None, every="2it"
    )
    for t in range(1, 9):
        before = thresholds(session)
        step(session)
        if t % 2 == 0:
            left = 800 * (1 - 0.8 * (1 - (1 - t / 8) ** 3))
            assert sum(session.masks.nonzeros.values()) == round(left)
        assert thresholds(session)[0] - before[0] == pytest.approx(
            thresholds(session)[1] - before[1]
        )
    assert session.masks.densities["a.weight"] < session.masks.densities["b.weight"]


def test_str_says_what_it_found_and_when_a_layer_is_gone():
    session = begin(Layers(a=[0.5, 0.01], b=[0.001]), "str", options={"init": -3.0}, steps=1)
    assert session.state.notes == ["step 0: the threshold of 'b.weight' left no weight"]
    step(session)
    assert session.state.notes[-1].startswith("learned thresholds reached a sparsity of 0.6667 ")


@pytest.mark.parametrize(
    "dials, said",
    [
        ({"storage": "frozen"}, "method.storage=frozen: .* only shadow will do"),
        ({"drop": "magnitude", "grow": "random"}, "method.drop=magnitude: "),
        ({"options": {"level": "schedule"}}, "method.options.level=schedule: .*'scheduled'"),
        ({"options": {"decay": -1.0}}, r"method.options.decay=-1.0: a number in \[0, inf\)"),
        ({"options": {"start": 1.0}}, "method.options.start=1.0: no such option"),
    ],
)
def test_str_refuses(dials, said):
    with pytest.raises(UserError, match=said):
        method("str", **dials)


@pytest.mark.parametrize(
    "name, options, said",
    [
        ("movement", {"optimizer": "adamw"}, "method.options.optimizer=adamw: one of adam, sgd"),
        ("movement", {"penalty": 1.0}, "method.options.penalty=1.0: no such option"),
        (
            "movement_soft",
            {"threshold": 0.5},
            r"method.options.threshold=0.5: a number in \(0, 0.5",
        ),
        ("acdc", {"reset_momentum": "maybe"}, "method.options.reset_momentum=maybe: one of True"),
    ],
)
def test_options_are_checked(name, options, said):
    with pytest.raises(UserError, match=said):
        method(name, options=options)
