"""Looking through a network before training: one pass that leaves it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sparsebench.errors import UserError
from sparsebench.sparsity.examples import undisturbed
from sparsebench.sparsity.method import TrainState

Inputs = tuple[tuple[Any, ...], dict[str, Any]]  # what a network's forward pass is called with


@contextmanager
def probing(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Gradients of any order through the network, which is put back at the end.

    Neither compiled code nor fused attention has a second derivative, so both are off.

    Args:
        model: the network.
        training: mode of it, which decides what normalisation and dropout do.
    """
    with (
        undisturbed(model),
        torch.enable_grad(),
        torch.compiler.set_stance("force_eager"),
        sdpa_kernel(SDPBackend.MATH),
    ):
        model.train(training)
        yield


def sample_of_ones(state: TrainState) -> Inputs:
    """What the network takes in, as one sample in which each number is 1 (float64).

    Only the shape of a training batch is looked at. Without any data a network that begins with
    a linear layer gets a vector of its length.

    Raises:
        UserError: the shape of an input can't be known.
    """
    if not state.data.given:
        leaves = [m for m in state.model.modules() if not list(m.children())]
        first = next((m for m in leaves if not isinstance(m, nn.Flatten)), None)
        if isinstance(first, nn.Linear):
            device = first.weight.device
            return (torch.ones(1, first.in_features, dtype=torch.float64, device=device),), {}
        raise UserError(
            "method: it needs the shape of an input, and gets no training data; give Session or "
            "Sparsify examples=Examples(batches, loss)"
        )
    seen: list[Inputs] = []
    (batch,) = state.data.take(state, 1)
    handle = state.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
    )
    with probing(state.model, training=False), torch.no_grad():
        state.data.loss(state.model, batch)
    handle.remove()
    if not seen:
        raise UserError("method: the loss of Examples never calls the network it is given")
    args, kwargs = seen[0]
    return tuple(_ones(value) for value in args), {k: _ones(v) for k, v in kwargs.items()}


def logits(output: Any) -> Tensor:
    """The tensor a network gives out, alone, first of several, or named ``logits``.

    Raises:
        UserError: there is none.
    """
    found = output[0] if isinstance(output, tuple | list) else getattr(output, "logits", output)
    if not isinstance(found, Tensor):
        raise UserError(f"method: the network gives out {type(output).__name__}, and no tensor")
    return found


def _ones(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    if not value.is_floating_point():  # such as the numbers of tokens
        return value[:1]
    return torch.ones(1, *value.shape[1:], dtype=torch.float64, device=value.device)
