"""What optimizers remember of absent weights, for each one that is known."""

import pytest
import torch
from torch import nn

from sparsebench.errors import UserError
from sparsebench.library import method
from sparsebench.sparsity import Session, optimizer_state, register_optimizer

RIGL = {"sparsity": 0.8, "every": "2it", "end": "100%", "drop_fraction": 0.5}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.LayerNorm(10), nn.Linear(10, 4))


def train(session: Session, steps: int) -> None:
    """Batches of random numbers, a function of the step."""
    for _ in range(steps):
        generator = torch.Generator().manual_seed(session.state.step)
        x = torch.randn(8, 6, generator=generator)
        y = torch.randint(4, (8,), generator=generator)
        nn.functional.cross_entropy(session.state.model(x), y).backward()
        session.after_backward()
        for optimizer in session.state.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        session.after_step()


OPTIMIZERS = [
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    (torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True}),
    (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.5}),
    (torch.optim.NAdam, {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    (torch.optim.RAdam, {"lr": 0.01, "weight_decay": 0.1}),
    (torch.optim.Adamax, {"lr": 0.01, "weight_decay": 0.1}),
    (torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.9, "centered": True, "weight_decay": 0.1}),
    (torch.optim.Adagrad, {"lr": 0.01, "weight_decay": 0.1, "initial_accumulator_value": 0.1}),
    (torch.optim.Adadelta, {"lr": 1.0, "weight_decay": 0.1}),
]


@pytest.mark.parametrize("kind, settings", OPTIMIZERS, ids=lambda v: getattr(v, "__name__", ""))
def test_every_known_optimizer_leaves_absent_weights_at_zero(kind, settings):
    assert kind in optimizer_state._KNOWN
    model = network()
    optimizer = kind(model.parameters(), **settings)
    session = Session(method("rigl", **RIGL), model, optimizer, total_steps=12, seed=0)
    for _ in range(12):
        train(session, 1)
        for name, parameter in session.masks.parameters.items():
            absent = ~session.masks[name]
            assert (parameter.detach()[absent] == 0).all()
            state = [v for v in optimizer.state[parameter].values() if v.shape == parameter.shape]
            tiny = 1e-8 if kind is torch.optim.Adamax else 0.0  # it adds its eps to |gradient|
            assert all((values[absent].abs() <= tiny).all() for values in state)
            assert kind is not torch.optim.SGD or state
    assert len(OPTIMIZERS) == len(optimizer_state._KNOWN)


class OwnOptimizer(torch.optim.Optimizer):
    """An optimizer nobody knows, with momentum in the shape of the weight."""

    def __init__(self, params) -> None:
        super().__init__(params, {})

    def step(self, closure=None) -> None:
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                velocity = self.state[parameter].setdefault("v", torch.zeros_like(parameter))
                velocity.mul_(0.9).add_(parameter.grad)
                parameter.data.sub_(0.1 * velocity)


def test_an_unknown_optimizer_is_refused_until_it_is_registered(monkeypatch):
    monkeypatch.setattr(optimizer_state, "_KNOWN", set(optimizer_state._KNOWN))

    class AdamW(torch.optim.Muon):  # a known name is not enough
        pass

    weights = [nn.Parameter(torch.ones(2, 2))]
    for unknown in (OwnOptimizer(weights), torch.optim.Adafactor(weights), AdamW(weights)):
        said = f"optimizer={type(unknown).__name__}: its state of a dropped weight .*known are Ada"
        with pytest.raises(UserError, match=said) as error:
            Session(method("rigl"), network(), unknown, total_steps=1000)
        assert "sparsebench.sparsity.register_optimizer" in str(error.value)
    register_optimizer(OwnOptimizer)

    class Derived(OwnOptimizer):
        pass

    model = network()
    session = Session(method("rigl", **RIGL), model, Derived(model.parameters()), total_steps=12)
    train(session, 12)
    state = session.state.optimizers[0].state
    for name, parameter in session.masks.parameters.items():
        assert (state[parameter]["v"] != 0).any()
        assert (state[parameter]["v"][~session.masks[name]] == 0).all()


def test_two_optimizers_share_a_model():
    model = network()
    parts = [torch.optim.Adam(model[0].parameters()), torch.optim.SGD(model[3].parameters(), 0.1)]
    session = Session(method("rigl", **RIGL), model, parts, total_steps=4, seed=0)
    for _ in range(4):
        train(session, 1)
        session.masks.check()
    moments = parts[0].state[model[0].weight]["exp_avg"]
    assert (moments[~session.masks["0.weight"]] == 0).all()
