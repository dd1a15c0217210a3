"""Networks of given weights, trained by given gradients: what methods do to them, by hand."""

import torch
from torch import nn

from sparsebench.library import method
from sparsebench.sparsity import Session

ALWAYS = {"begin": "0%", "every": "1it", "end": "100%"}
SPARSE = {**ALWAYS, "sparsity_schedule": "constant", "initial": "magnitude", "sparsity_end": None}


class Layers(nn.Module):
    """Layers of given flat weights."""

    def __init__(self, **weights: list[float]) -> None:
        super().__init__()
        for name, values in weights.items():
            layer = nn.Linear(len(values), 1, bias=False)
            layer.weight.data.copy_(torch.tensor(values))
            self.add_module(name, layer)


def begin(net, name, sparsity=0.5, steps=10, lr=1.0, optimizer=None, resume=None, **dials):
    optimizer = optimizer or torch.optim.SGD(net.parameters(), lr=lr)
    engine = method(name, sparsity=sparsity, distribution="strict_uniform", **dials)
    return Session(engine, net, optimizer, total_steps=steps, seed=0, resume=resume)


def step(session, seen=None, **gradients):
    """One optimizer step with given gradients at what the forward pass sees (kept in ``seen``)."""
    session.before_forward()
    for name, parameter in session.masks.parameters.items():
        layer = name.split(".")[0]
        if seen is not None:
            seen[layer] = parameter.detach().view(-1).tolist()
        values = gradients.get(layer, [0.0] * parameter.numel())
        values = values(parameter.detach().view(-1)) if callable(values) else torch.tensor(values)
        parameter.grad = values.view_as(parameter).clone()
    session.after_backward()
    session.state.optimizers[0].step()
    session.after_step()


def shown(session, layer="a"):
    return session.masks.shown(f"{layer}.weight").view(-1).tolist()


def dense(session, layer="a"):
    return session.masks.dense(f"{layer}.weight").view(-1).tolist()


def active(session, layer="a"):
    return session.masks[f"{layer}.weight"].view(-1).nonzero().view(-1).tolist()
