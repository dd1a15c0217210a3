"""MEST: memory-economic sparse training, with elastic mutation and a soft memory bound.

Source: Yuan et al., arXiv 2110.14032; code github.com/boone891214/MEST. The importance of a weight
is ``|w| + lambda |dL/dw|``. Every five epochs the least important go and as many random ones come,
at zero (a place just freed may be drawn). The share that moves falls in stages and is 0 at the end:

* EM, elastic mutation: drop, then grow to the target. At 90 % sparsity the code's scripts move 2,
  1 and 0 points of all weights, that is 20, 10 and 0 % of those present, and at 95 % the same
  shares. This is ``drop_fraction`` with ``drop_schedule: staged``, and needs no engine.
* EM&S, soft memory bound: prune to the target, then grow *beyond* it. Newcomers train beside the
  others until the next update and are only then judged, so between updates the network is denser
  than the target: by ``surplus``, 5, 2.5 and 0 points of all weights in the scripts. Memory and
  FLOPs are those of the denser network. The last update leaves exactly the target.

The gradient in the score is that of present weights, so no dense gradient is ever needed. Where we
differ on purpose: lambda is 0.01 by default, while the released scripts leave it at 0; counts are
exact (the code goes by a percentile); the optimizer forgets dropped weights (the code's momentum
does not); layers follow the distribution asked for (the code's are all alike; as here with
``distribution=strict_uniform``); no update comes before the first step (the code's at epoch 0
replaces a part of a random mask by another, and for EM&S adds the surplus, which we begin with).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sparsebench.errors import bad_value
from sparsebench.sparsity import registry
from sparsebench.sparsity.composed import Composed
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.observers import Gradient
from sparsebench.sparsity.scores import Layer, needs
from sparsebench.sparsity.spec import MethodSpec, number
from sparsebench.sparsity.window import Window


@dataclass(frozen=True)
class Options:
    """Of MEST, beside the dials."""

    gradient_weight: float = number(0.01, "[0, inf)", "lambda, the gradient's part of importance")
    surplus: float = number(0.0, "[0, 1)", "share of all weights beyond the target (EM&S)")


class WeightedGradient(Gradient):
    """lambda times the gradient of present weights, at the update's own step."""

    dense_gradient = "never"

    def __init__(self, spec: MethodSpec) -> None:
        """Take lambda."""
        super().__init__(spec)
        self.weight = spec.options.get("gradient_weight", Options.gradient_weight)

    def values(self, state: TrainState) -> Mapping[str, Tensor]:
        """Zero where a weight is absent."""
        found = super().values(state)
        return {n: self.weight * g * state.masks.factor(n) for n, g in found.items()}


@needs("weighted_gradient")
def importance(layer: Layer) -> Tensor:
    """|w| + lambda |dL/dw| (MEST, arXiv 2110.14032, eq. 1)."""
    return layer.weight.abs() + layer["weighted_gradient"].abs()


@dataclass(frozen=True)
class Soft(Window):
    """A window in which the network is denser than the target until the last update.

    Attributes:
        surplus: share of all weights that it has beyond the target at first.
    """

    surplus: float = 0.0

    def sparsity(self, spec: MethodSpec, final: float, step: int) -> float:
        """The sparsity of the network that trains after ``step`` steps."""
        decay = registry.find(spec.drop_schedule, registry.DROP_SCHEDULES, "method.drop_schedule")
        share = decay((step - self.begin) / (self.end - self.begin)) if step < self.last else 0.0
        return max(super().sparsity(spec, final, step) - self.surplus * share, 0.0)


class Mest(Composed):
    """Prunes to the target and grows beyond it, so that newcomers are judged after training."""

    Options = Options

    def __init__(self, spec: MethodSpec, *args: Any) -> None:
        """As :class:`Composed`.

        Raises:
            UserError: a surplus without anything to fill it, or with a dial it makes idle.
        """
        super().__init__(spec, *args)
        surplus = self.options.surplus
        if surplus and not spec.grow:
            raise bad_value("method.options.surplus", surplus, "it needs a method.grow to fill it")
        if surplus and spec.drop_fraction != MethodSpec.drop_fraction:
            why = "has no effect with method.options.surplus, which says how much moves"
            raise bad_value("method.drop_fraction", spec.drop_fraction, why)
        if surplus:
            self._prune = self._drop or self._prune  # what drops is what judges the newcomers

    def window(self, total_steps: int, steps_per_epoch: int) -> Window:
        """With the surplus in the sparsity of each time."""
        window = super().window(total_steps, steps_per_epoch)
        if not self.options.surplus:
            return window
        return Soft(**vars(window), surplus=self.options.surplus)

    def update(self, state: TrainState) -> None:
        """Judge the newcomers of the last interval, and let others in."""
        if not self.options.surplus:
            super().update(state)
            return
        assert self._window is not None
        target = Window.sparsity(self._window, self.spec, self.sparsity, state.step)
        self._retarget(state, target)
        self._retarget(state, self._target(state.step))
