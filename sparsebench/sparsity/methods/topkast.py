r"""Top-KAST (Jayakumar et al. 2020, arXiv 2106.03517): sparse forward, a little denser backward.

There is a value theta for every place. The forward pass and the gradient of the activations see
the set A of each layer's largest |theta| only (the masks). The set B, of more of the largest, gets
the gradient of the weights, taken at theta on A and zero elsewhere; B minus A explores. What is
outside B does not change at all: no gradient, no momentum, no weight decay. Both sets are chosen
anew at every update; the paper finds 100 steps between two as good as one. A step costs
2 f(A) + f(B).

The exploration loss pulls at all of B, and at B minus A harder by 1 / D, D being the share of A::

    strength * (sum over A of theta^2 / 2 + sum over B \ A of theta^2 / (2 D))        (l2)
    strength * (sum over A of |theta| + sum over B \ A of |theta| / D)                (l1)

There is no official code. The paper's text names L2 and its formula prints |theta|: L2 is our
default, with the half that makes ``strength`` a weight decay. D is the density of A in the layer.
The paper does not say what optimizers remember of a place that leaves B: here they forget it.

The paper may stop exploring after some steps, with B = A from then on. That is the end of the
update window here: after the last update the sets stay, so nothing explored could ever be used, and
B is A.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from sparsebench.errors import UserError, bad_value
from sparsebench.sparsity.composed import Composed
from sparsebench.sparsity.distributions import allocate
from sparsebench.sparsity.method import Densities, TrainState
from sparsebench.sparsity.spec import DistributionSpec, MethodSpec, StructureSpec, number
from sparsebench.sparsity.topk import topk_indices
from sparsebench.sparsity.window import Window


class TopKast(Composed):
    """Masks are A; the reach of the shadow weights is B."""

    @dataclass(frozen=True)
    class Options:
        """The set B and the exploration loss."""

        backward_sparsity: float | None = number(
            None, "[0, 1)", "sparsity of B; none: B is twice as large as A"
        )
        penalty: str = field(default="l2", metadata={"choices": ("l2", "l1")})
        strength: float = number(1e-4, "[0, inf)", "factor of the exploration loss")

    def __init__(
        self,
        spec: MethodSpec,
        sparsity: float,
        distribution: DistributionSpec | None = None,
        structure: StructureSpec | None = None,
    ) -> None:
        """As :class:`Composed`; B must not be smaller than A."""
        super().__init__(spec, sparsity, distribution, structure)
        given = self.options.backward_sparsity
        if given is not None and self.sparsity and given > sparsity:
            allowed = f"at most the sparsity of the forward pass, {sparsity}, is possible"
            raise bad_value("method.options.backward_sparsity", given, allowed)
        if spec.storage != "shadow" or self.structure.grouped:
            raise UserError(
                f"method.storage={spec.storage} structure={structure and structure.name}: "
                f"method.engine={spec.engine} is for single weights that live on as shadow"
            )
        self._pull: dict[str, Tensor] = {}  # of each place, its factor in the loss's gradient
        self._densities: Densities = {}

    def start(self, state: TrainState) -> None:
        """Choose A, then B."""
        super().start(state)
        self._pull, self._densities = {}, {}
        if self.sparsity > 0.0 and not state.resuming:
            self._choose(state)

    @torch.no_grad()
    def update(self, state: TrainState) -> None:
        """Choose both sets anew, among all places."""
        self._choose(state)

    def _choose(self, state: TrainState) -> None:
        assert self._window is not None
        masks, shapes = state.masks, {n: p.shape for n, p in state.masks.parameters.items()}
        inner, outer = self._counts(state, self._target(state.step)), {}
        for name, kept in self._backward(shapes, self._window, state.step).items():
            size = masks.dense(name).abs().reshape(-1)
            outer[name] = topk_indices(size, max(kept, inner[name]))
            largest = topk_indices(size.index_select(0, outer[name]), inner[name])
            chosen = torch.zeros_like(size, dtype=torch.bool)
            masks.set(name, chosen.index_fill_(0, outer[name].index_select(0, largest), True))
        masks.reach.set(masks.parameters, outer, state.optimizers)
        self._weigh(state)

    def _weigh(self, state: TrainState) -> None:
        """From the sets: the factors of the exploration loss, and what the backward costs."""
        masks = state.masks
        for name, reach in masks.reach.factors.items():
            weak = self.options.strength
            strong = weak / masks.densities[name]
            self._pull[name] = (reach * strong).add_(masks.factor(name), alpha=weak - strong)
        self._densities = {"weight_gradient": masks.reach.densities()}

    @torch.no_grad()
    def after_backward(self, state: TrainState) -> bool:
        """Add the gradient of the exploration loss."""
        replaced = super().after_backward(state)
        if state.masks.reach.factors and not self._pull:  # the first step after a resume
            self._weigh(state)
        for name, pull in self._pull.items():
            gradient = state.masks.parameters[name].grad
            if gradient is not None and self.options.strength:
                theta = state.masks.awake(name)
                gradient.addcmul_(theta.sign() if self.options.penalty == "l1" else theta, pull)
        return replaced

    # --- what it costs ---------------------------------------------------------------------

    def gradient_densities(self, state: TrainState) -> Densities:
        """The weight gradient of a step is that of B."""
        if state.masks.reach.factors and not self._densities:
            self._weigh(state)
        return self._densities

    def forecast_gradients(
        self, shapes: Mapping[str, torch.Size], window: Window, step: int
    ) -> Densities:
        """The same before training, after ``step`` steps."""
        counts = self._backward(shapes, window, step)
        return {"weight_gradient": {n: kept / shapes[n].numel() for n, kept in counts.items()}}

    def _backward(
        self, shapes: Mapping[str, torch.Size], window: Window, step: int
    ) -> dict[str, int]:
        """How many places of each layer are in B after ``step`` steps."""
        density = 1.0 - self.sparsity
        if step < window.last:
            given = self.options.backward_sparsity
            density = min(2.0 * density, 1.0) if given is None else 1.0 - given
        if density == 1.0:
            return {name: shape.numel() for name, shape in shapes.items()}
        return allocate(shapes, density, **asdict(self.distribution))
