"""What fires together is wired together: growth by correlation of activations, with no gradient.

A missing connection from a unit i of a layer's input to a unit j of its output is judged by the
absolute Pearson correlation of the two over one training batch,

    |sum (a_i - mean a_i) (b_j - mean b_j)| / (n sd(a_i) sd(b_j))

where a_i is what the layer is fed (after the nonlinearity before it) and b_j what it gives, before
its own nonlinearity (G2GNet, arXiv 2508.14140, from its abstract: no code is public). In a
convolution each weight is a connection of its own, from a channel shifted by a tap to an output
channel, and the sums go over the places of the image too, padding included.

The sums over all places at which a weight is used are those of a weight's gradient, so automatic
differentiation does them for linear layers and convolutions alike. They are taken at mask updates
only, with the network in eval mode: one forward pass and three of those sums on one batch, which
the FLOPs of a training leave out as they do the choice of masks in general.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sparsebench.errors import UserError
from sparsebench.sparsity.examples import undisturbed
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.observers import Observer
from sparsebench.sparsity.scores import Layer, needs, random


@dataclass
class Sums:
    """Of a weight's two ends a and b, over all n places: sums of ab, a, aa, and of b, bb."""

    ab: Tensor
    a: Tensor
    aa: Tensor
    b: Tensor
    bb: Tensor
    n: int

    @classmethod
    def of(cls, layer: nn.Module, x: Tensor, y: Tensor) -> Sums:
        """From one call of a layer: its input and its output."""
        x, y = x.detach().double(), y.detach().double()
        channel = y.ndim - 1 if isinstance(layer, nn.Linear) else 1
        rest = [dim for dim in range(y.ndim) if dim != channel]
        ones = torch.ones_like(y)
        return cls(
            ab=_over_places(layer, x, y), a=_over_places(layer, x, ones),
            aa=_over_places(layer, x * x, ones), b=y.sum(rest), bb=(y * y).sum(rest),
            n=y.numel() // y.shape[channel],
        )  # fmt: skip

    def __add__(self, other: Sums) -> Sums:
        """Over the places of two calls."""
        return Sums(
            self.ab + other.ab, self.a + other.a, self.aa + other.aa,
            self.b + other.b, self.bb + other.bb, self.n + other.n,
        )  # fmt: skip

    def correlation(self) -> Tensor:
        """Absolute correlation, of the weight's shape; 0 where an end never varies."""
        shape = (-1, *(1,) * (self.ab.ndim - 1))
        b, bb = self.b.view(shape), self.bb.view(shape)
        together = self.ab - self.a * b / self.n
        vary_a, vary_b = self.aa - self.a**2 / self.n, bb - b**2 / self.n
        alive = (vary_a > 1e-12 * self.aa) & (vary_b > 1e-12 * bb)  # more than rounding
        return torch.where(alive, together.abs() / (vary_a * vary_b).sqrt(), 0.0)


def _over_places(layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Of each weight: the sum, over the places it is used at, of input times ``y``."""
    weight = torch.zeros_like(layer.get_parameter("weight"), dtype=x.dtype).requires_grad_()
    bias = getattr(layer, "bias", None)
    values = {"weight": weight} | ({} if bias is None else {"bias": bias.detach().to(x.dtype)})
    with torch.enable_grad():
        output = functional_call(layer, values, (x,))
        (found,) = torch.autograd.grad(output, weight, y)
    return found


class Correlation(Observer):
    """Correlations of the two ends of each weight, on one training batch, at an update."""

    def values(self, state: TrainState) -> Mapping[str, Tensor]:
        """For each sparse parameter; zero in a layer that the forward pass does not call.

        Raises:
            UserError: a sparse parameter belongs to neither a linear layer nor a convolution.
        """
        layers = {n: _owner(state.model, n) for n in state.masks.parameters}
        calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}
        handles = [m.register_forward_hook(_recorder(calls[n])) for n, m in layers.items()]
        (batch,) = state.data.take(state, 1)
        try:
            with undisturbed(state.model), torch.no_grad():
                state.model.eval()
                state.data.loss(state.model, batch)
        finally:
            for handle in handles:
                handle.remove()
        return {n: _correlation(m, calls[n]) for n, m in layers.items()}


def _correlation(layer: nn.Module, calls: list[tuple[Tensor, Tensor]]) -> Tensor:
    weight = layer.get_parameter("weight").detach()
    if not calls:
        return torch.zeros_like(weight)
    found = [Sums.of(layer, x, y) for x, y in calls]
    return sum(found[1:], found[0]).correlation().to(weight)


def _owner(model: nn.Module, name: str) -> nn.Module:
    layer = model.get_submodule(name.rpartition(".")[0])
    if not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        raise UserError(
            f"method.grow=hebbian: '{name}' belongs to {type(layer).__name__}, whose input has no "
            "activations to correlate; leave it out by selector.exclude"
        )
    return layer


def _recorder(calls: list[tuple[Tensor, Tensor]]) -> Callable[..., None]:
    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((inputs[0].detach().clone(), output.detach().clone()))  # may change in place

    return record


@needs("correlation")
def hebbian(layer: Layer) -> Tensor:
    """Correlation of the two ends; pairs with none, such as those of dead units, at random last."""
    found = layer["correlation"]
    return torch.where(found > 0, found, random(layer).to(found) - 1.0)
