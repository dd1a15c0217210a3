"""Scores of pruning at initialisation that look at more than one gradient of a batch.

SNIP's score is ``saliency`` in ``scores``; with ``initial_rounds`` it is iterative SNIP, and with
``initial_regrow`` too it is FORCE. Here are GraSP's and SynFlow's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sparsebench.errors import UserError
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.observers import Observer
from sparsebench.sparsity.probing import Inputs, logits, probing, sample_of_ones
from sparsebench.sparsity.scores import Layer, needs
from sparsebench.sparsity.spec import MethodSpec

#: What GraSP divides the network's output by, so that its softmax is nearly even.
TEMPERATURE = 200.0


@needs("hessian_gradient")
def grasp(layer: Layer) -> Tensor:
    """``w (Hg)``: what removing a weight takes away from the squared norm of the gradient.

    Wang et al., arXiv 2002.07376, eq. 8: S = -w (Hg), and the weights of the highest S go. The
    official code keeps one weight more than asked, and takes ten samples of each class, half of
    them at a time; here counts are exact, and batches are drawn as they come.
    """
    return layer.weight * layer["hessian_gradient"]


@needs("hessian_gradient")
def grasp_abs(layer: Layer) -> Tensor:
    """``|w (Hg)|``: the size of the change only, a rule of later papers (not GraSP's own)."""
    return (layer.weight * layer["hessian_gradient"]).abs()


@needs("flow")
def synflow(layer: Layer) -> Tensor:
    """``|w| dR/d|w|``: the share of what flows from a sample of ones to the output (float64).

    Tanaka et al., arXiv 2006.05467, eq. 2 and 3: R is the output of the network with each weight
    replaced by its size. Of each unit the shares of the weights going in and those going out sum
    to the same, and those of each layer to R. Biases take no part (the official code takes their
    sizes, and its networks begin with biases of 0): so a unit that nothing comes to has no flow.
    """
    return layer.weight.double().abs() * layer["flow"]


class HessianGradient(Observer):
    """Hg at the weights as they are: the gradient of a loss, times its Hessian.

    It is the gradient of z = g . stop(g) by the weights, with g the mean gradient over
    ``initial_batches`` batches, in training mode, of the loss at outputs divided by 200.
    """

    def __init__(self, spec: MethodSpec) -> None:
        """Take the number of batches."""
        self.batches = spec.initial_batches

    def values(self, state: TrainState) -> Mapping[str, Tensor]:
        """Hg of each sparse weight."""
        weights = state.masks.parameters
        taken = state.data.take(state, self.batches)
        total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        handle = state.model.register_forward_hook(_tempered)
        try:
            with probing(state.model, training=True):
                stopped = state.data.gradients_of(state, taken)
                for batch in taken:
                    loss = state.data.loss(state.model, batch)
                    found = _gradients(loss, list(weights.values()), create_graph=True)
                    parts = zip(found, stopped.values(), strict=True)
                    z = torch.stack([(g * constant).sum() for g, constant in parts]).sum()
                    second = _gradients(z, list(weights.values()))
                    for name, gradient in zip(weights, second, strict=True):
                        total[name] += gradient / self.batches
        finally:
            handle.remove()
        return total


class Flow(Observer):
    """dR/d|w| of SynFlow, in float64 and with the running statistics of normalisation.

    One sample has no batch statistics, and products of many layers leave the range of float32.
    """

    def __init__(self, spec: MethodSpec) -> None:
        """Nothing seen yet."""
        self.inputs: Inputs | None = None

    def begin(self, state: TrainState) -> None:
        """Forget an earlier run."""
        self.inputs = None

    def values(self, state: TrainState) -> Mapping[str, Tensor]:
        """Of each sparse weight, in its shape."""
        self.inputs = self.inputs or sample_of_ones(state)
        positive = _positive(state.model)
        weights = {name: positive[name].requires_grad_() for name in state.masks}
        with probing(state.model, training=False):
            flow = logits(functional_call(state.model, positive, *self.inputs)).sum()
            found = _gradients(flow, list(weights.values()))
        if not all(gradient.isfinite().all() for gradient in found):
            raise UserError("method.initial=synflow: the flow through the network is not finite")
        return dict(zip(weights, found, strict=True))


def _positive(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers at their size, in float64; what is only added is 0."""
    return {
        name: torch.zeros_like(tensor, dtype=torch.float64)
        if name.rpartition(".")[2] in ("bias", "running_mean")
        else tensor.detach().double().abs()
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        if tensor.is_floating_point()
    }


def _gradients(loss: Tensor, weights: list[Tensor], create_graph: bool = False) -> list[Tensor]:
    """The gradient by each weight; zeros by those the loss doesn't depend on."""
    found = torch.autograd.grad(loss, weights, create_graph=create_graph, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]


def _tempered(module: nn.Module, args: object, output: object) -> Tensor:
    return logits(output) / TEMPERATURE
