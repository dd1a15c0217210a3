"""Values that new connections start from, where it is not 0 (``method.grown``).

Each part is a function of a layer and of flat positions, and gives a value for each of these. They
are the options of the RigL code (arXiv 1911.11134, appendix; google-research/rigl,
``sparse_optimizers_base.get_grow_tensor``), whose paper finds zeros best. Its divisors, such as
``initial_dist_10``, are ``method.grown_scale`` here. SET (arXiv 1707.04780) draws new weights from
the initial distribution.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.observers import Observer
from sparsebench.sparsity.scores import Layer, needs
from sparsebench.sparsity.spec import MethodSpec
from sparsebench.sparsity.topk import compress


class Initial(Observer):
    """The weights that training began with, dense, before the first masks."""

    def __init__(self, spec: MethodSpec) -> None:
        """Nothing seen yet."""
        self.kept: dict[str, Tensor] = {}

    def begin(self, state: TrainState) -> None:
        """Keep a copy."""
        self.kept = {n: p.detach().clone() for n, p in state.masks.parameters.items()}

    def values(self, state: TrainState) -> Mapping[str, Tensor]:
        """The weights, of their shapes."""
        return self.kept

    def state_dict(self) -> dict[str, Any]:
        """The weights."""
        return dict(self.kept)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self.kept = {n: t.to(self.kept[n].device, copy=True) for n, t in state.items()}


@needs("initial")
def initial(layer: Layer, positions: Tensor) -> Tensor:
    """Drawn, with replacement, from the values that the layer had at initialisation.

    The RigL code takes them without replacement, which shuffles the whole layer for a few.
    """
    values = layer["initial"]
    drawn = torch.randint(values.numel(), positions.shape, generator=layer.generator)
    return values[drawn.to(values.device)]


def normal(layer: Layer, positions: Tensor) -> Tensor:
    """Normal, with mean 0 and the standard deviation of the layer's connections.

    The RigL code takes that of all positions, zeros and all, so its values are smaller.
    """
    deviation = compress(layer.weight, layer.mask).std(correction=0)
    drawn = torch.randn(positions.shape, generator=layer.generator)
    return drawn.to(deviation.device) * deviation


def uniform(layer: Layer, positions: Tensor) -> Tensor:
    """Uniform, up to the mean size of the layer's connections either way (see :func:`normal`)."""
    size = compress(layer.weight, layer.mask).abs().mean()
    drawn = torch.rand(positions.shape, generator=layer.generator)
    return (2.0 * drawn.to(size.device) - 1.0) * size


@needs("gradient")
def gradient(layer: Layer, positions: Tensor) -> Tensor:
    """The dense gradient, with a minus: the step that gradient descent would take.

    The RigL code forgets the minus, so its new weights start uphill.
    """
    return -layer["gradient"][positions]


@needs("gradient")
def gradient_sign(layer: Layer, positions: Tensor) -> Tensor:
    """The sign of that step."""
    return -layer["gradient"][positions].sign()
