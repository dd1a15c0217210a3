"""SRigL: RigL with a constant fan-in, which also removes neurons (Lasby et al., arXiv 2305.02299).

An update of a layer that may keep n weights, with the drop fraction f of its present ones (N):

1. Salient are the N - floor(fN) largest |w| and the floor(fN) largest |gradient| of the layer.
2. A neuron with fewer salient weights than max(1, floor(gamma_sal x fan-in)) is ablated: it has
   no weight until a later update finds it salient again. So many stay that n weights have room.
3. The neurons left share n: each has k = floor(n / neurons) weights. Of the largest |w| (as many
   as in 1., of neurons that stay) each keeps its k best, and the largest |gradient| fill it up.

Layers that are dense do not change, and no neuron of the last layer is ablated, as those are
classes. ``distribution.first_dense=true`` keeps the first layer dense, as the paper's CIFAR runs.

The official code (calgaryml/condensed-sparsity) measures gamma_sal in shares of the dense fan-in
unless a flag is set; the paper in shares of the constant fan-in, which is our default
(``fan_in: dense`` for the other). On purpose we differ where a neuron has more than k weights: the
code keeps an arbitrary k of them (it sorts booleans), we the largest. And what the code keeps
beyond the present weights, to reach its number, are absent ones by order of index; here the
gradient fills those places.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from sparsebench.errors import UserError
from sparsebench.sparsity.blocks import FanIn, best_of_rows, matrix
from sparsebench.sparsity.composed import Composed
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.scores import Layer
from sparsebench.sparsity.spec import MethodSpec, number
from sparsebench.sparsity.topk import count, positions, topk_indices


@dataclass(frozen=True)
class Options:
    """Options of SRigL."""

    gamma_sal: float = number(0.3, "[0, inf)", "salient share of its fan-in a neuron needs")
    fan_in: str = field(default="constant", metadata={"choices": ("constant", "dense")})


class SRigL(Composed):
    """Exchange weights so that all neurons of a layer have as many, and drop idle neurons.

    ``drop`` and ``grow`` are the two scores. ``gamma_sal`` of 1 and more is a number of weights,
    and 0 ablates no neuron.
    """

    Options: ClassVar[type] = Options
    #: Whether the final network may be smaller than it was built.
    removes_channels: ClassVar[bool] = True

    def _check_parts(self, spec: MethodSpec) -> None:
        super()._check_parts(spec)
        if not isinstance(self.structure, FanIn):
            raise UserError(f"method={spec.name}: it keeps a constant fan-in: structure=fan_in")
        if not spec.drop or spec.storage != "zeroed":
            raise UserError(
                f"method={spec.name}: it needs a method.drop, a method.grow and "
                f"method.storage=zeroed (method.drop={spec.drop} method.storage={spec.storage})"
            )

    def update(self, state: TrainState) -> None:
        """Ablate, drop and grow in each layer."""
        assert self._window is not None
        fraction = self._window.drop_fraction(self.spec, state.step)
        budget = self._weights(state, self._target(state.step))
        layers = self._layers(state)
        last = list(layers)[-1]
        for name, layer in layers.items():
            if budget[name] == layer.weight.numel():
                continue
            mask = layer.mask
            new = self._exchanged(layer, mask, budget[name], fraction, ablate=name != last)
            self._move(state, name, positions(mask & ~new), positions(new & ~mask), layer)

    def _exchanged(
        self, layer: Layer, mask: Tensor, budget: int, fraction: float, *, ablate: bool
    ) -> Tensor:
        """The new mask of a layer, flat."""
        assert callable(self._drop)
        assert callable(self._grow)
        old, new = self._drop(layer), self._grow(layer)
        present = count(mask)
        dropped = math.floor(fraction * present + 1e-9)
        rows, columns = matrix(layer.shape)
        stays = torch.ones(rows, dtype=torch.bool, device=mask.device)
        if ablate and self.options.gamma_sal > 0:
            salient = torch.zeros_like(mask)
            salient[topk_indices(old, present - dropped)] = True
            salient[topk_indices(new, dropped)] = True
            stays = self._salient_rows(salient.view(rows, columns).sum(1), budget, columns)
        each = stays * max(1, budget // count(stays))
        stay = stays.repeat_interleave(columns)
        among = mask & stay
        largest = torch.zeros_like(mask)
        largest[topk_indices(old, min(present - dropped, count(among)), among)] = True
        kept = torch.zeros_like(mask)
        kept[best_of_rows(old, largest, each)] = True
        lacks = each - kept.view(rows, columns).sum(1)
        return kept.index_fill(0, best_of_rows(new, ~kept & stay, lacks), True)

    def _salient_rows(self, salient: Tensor, budget: int, columns: int) -> Tensor:
        """Which neurons stay, from their numbers of salient weights.

        At least so many that the budget has room, and at most as many as it has weights.
        """
        gamma, rows = self.options.gamma_sal, salient.numel()
        whole = columns if self.options.fan_in == "dense" else max(1, budget // rows)
        needed = int(gamma) if gamma >= 1 else max(1, int(gamma * whole))
        ranked = salient.sort(descending=True).values
        needed = min(needed, int(ranked[budget // columns]))
        stays = salient >= needed
        if count(stays) > budget:
            stays = torch.zeros_like(stays)
            stays[topk_indices(salient.double(), budget)] = True
        return stays
