"""STR: thresholds of weights are learned, layer by layer (Kusupati et al., arXiv 2002.03231).

The network uses, with one learned number s for each layer and g the sigmoid (equations 3 to 5),

    W' = sign(W) relu(|W| - g(s))
    dL/dW = dL/dW' where W' is not 0,   dL/ds = - g'(s) * sum over those of sign(W) dL/dW'

Weight decay acts on s too. It pulls s towards 0, so with an s that starts very negative it alone
lets thresholds appear. Sparsity follows from where s begins and how it decays, not from a wish:
``sparsity`` is only compared with, in a note of the run. The masks are the exact zeros of W'.

Official code: RAIVNLab/STR (utils/conv_type.py, main.py). As there, s is trained by an optimizer
of the network's own kind, with all its hyperparameters of the moment, and absent weights get no
gradient but decay and keep their momentum. Differs on purpose: s is no part of the gradient's norm
where it is clipped, and of the dials for s there are two, ``init`` and ``decay`` (the code's
sInit_value and st_decay). The paper starts at s = -3200 for 100 epochs of ImageNet; s shrinks by
the factor (1 - rate x decay) in each step, so a short training needs a start near the end: ours
is -5, a threshold of 0.0067.

``options.level=scheduled`` is ours, for comparisons at equal sparsity: at each update one number is
added to all s, so that as many weights are left as the sparsity schedule says. How layers differ
is still learned. FLOPs are counted as for all weights that learn while absent, with the gradient of
all weights in each step, though the equations use only that of present ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsebench.errors import bad_value
from sparsebench.sparsity.composed import Composed
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.methods.learned import Group, Learned, group_of, kind_of
from sparsebench.sparsity.spec import DistributionSpec, MethodSpec, StructureSpec, number

LEVELS = ("learned", "scheduled")


@dataclass(frozen=True)
class ThresholdOptions:
    """How thresholds are trained."""

    init: float = number(-5.0, "(-inf, inf)", "s of each layer at the start")
    decay: float | None = number(None, "[0, inf)", "weight decay of s; none: that of the weights")
    level: str = field(default="learned", metadata={"choices": LEVELS})


def soft_threshold(weight: Tensor, s: Tensor) -> Tensor:
    """Weights moved towards zero by sigmoid(s), and zero if they are nearer to it than that."""
    return weight.sign() * torch.relu(weight.abs() - torch.sigmoid(s))


def threshold_gradient(weight: Tensor, gradient: Tensor, s: Tensor) -> Tensor:
    """dL/ds from the gradient at the weights that are left (zero elsewhere)."""
    share = torch.sigmoid(s)
    return -share * (1.0 - share) * (weight.sign() * gradient).sum()


class LearnedThresholds(Composed):
    """Soft thresholds, trained with the network; masks are what they leave."""

    Options = ThresholdOptions

    def __init__(
        self,
        spec: MethodSpec,
        sparsity: float,
        distribution: DistributionSpec | None = None,
        structure: StructureSpec | None = None,
    ) -> None:
        """Put the parts together; most have no place here.

        Raises:
            UserError: a dial that would have no effect.
        """
        super().__init__(spec, sparsity, distribution, structure)
        for dial, needed in {"storage": "shadow", "initial": "dense", "drop": None}.items():
            if getattr(spec, dial) != needed:
                said = f"learned thresholds decide which weights there are; only {needed} will do"
                raise bad_value(f"method.{dial}", getattr(spec, dial), said)
        if self.structure.grouped:
            raise bad_value("structure", structure and structure.name, "STR is unstructured")
        self._gradients: dict[str, Tensor] = {}

    def start(self, state: TrainState) -> None:
        """Thresholds at their start, and the masks that they make."""
        super().start(state)
        if self.sparsity == 0.0:
            return
        weights = state.masks.parameters
        starts = {
            n: torch.full((), float(self.options.init), device=p.device, dtype=p.dtype)
            for n, p in weights.items()
        }
        self._s = Learned(starts, lambda values: self._trainer(state, values))
        state.masks.show = lambda name, dense, factor: soft_threshold(dense, self._s[name])
        if not state.resuming:
            self._follow(state)

    @torch.no_grad()
    def after_backward(self, state: TrainState) -> bool:
        """Gradients of the thresholds; those of absent weights are zero."""
        if self.sparsity == 0.0:
            return False
        for name, parameter in state.masks.parameters.items():
            if parameter.grad is not None:
                parameter.grad.mul_(state.masks.factor(name))
                weight = state.masks.dense(name)
                self._gradients[name] = threshold_gradient(weight, parameter.grad, self._s[name])
        return False

    @torch.no_grad()
    def after_step(self, state: TrainState) -> None:
        """Move the thresholds too, and let the masks follow."""
        if self.sparsity == 0.0:
            return
        groups = zip(self._s.optimizer.param_groups, state.masks.parameters.values(), strict=True)
        for group, parameter in groups:
            group.update(self._dials(group_of(state.optimizers, parameter)[1]))
        self._s.step(self._gradients)
        self._gradients = {}
        if self.options.level == "scheduled" and self._is_update(state.step):
            self._shift(state)
        self._follow(state)
        if state.step == state.total_steps and self.options.level == "learned":
            state.notes.append(
                f"learned thresholds reached a sparsity of {state.masks.sparsity:.4f} where "
                f"{self.sparsity:g} was asked; method.options.init and decay set it"
            )

    def _follow(self, state: TrainState) -> None:
        """The masks are what the thresholds leave."""
        for name, parameter in state.masks.parameters.items():
            left = soft_threshold(parameter.detach(), self._s[name]) != 0
            if torch.equal(left, state.masks[name]):
                continue
            state.masks.set(name, left)
            if not state.masks.nonzeros[name]:
                state.notes.append(f"step {state.step}: the threshold of '{name}' left no weight")

    def _shift(self, state: TrainState) -> None:
        """Move all thresholds alike, so that the scheduled number of weights is left."""
        room = torch.cat(
            [
                torch.logit(p.detach().abs().reshape(-1), eps=1e-7) - self._s[name]
                for name, p in state.masks.parameters.items()
            ]
        )  # how far s may rise before a weight is gone
        gone = round(self._target(state.step) * room.numel())
        if 0 < gone < room.numel():
            ordered = room.sort().values
            for name in state.masks:
                self._s.shift(name, (ordered[gone - 1] + ordered[gone]) / 2)

    def _trainer(self, state: TrainState, values: list[nn.Parameter]) -> Optimizer:
        """An optimizer of the kind that moves the weights, with a group for each threshold."""
        pairs = zip(values, state.masks.parameters.values(), strict=True)
        found = [(value, *group_of(state.optimizers, parameter)) for value, parameter in pairs]
        groups = [{**self._dials(group), "params": [value]} for value, _, group in found]
        trainer: Optimizer = kind_of(found[0][1])(groups)  # type: ignore[call-arg]  # rate is given
        return trainer

    def _dials(self, group: Group) -> Group:
        """Hyperparameters of a threshold, from those of the weights of its layer."""
        return (
            group if self.options.decay is None else {**group, "weight_decay": self.options.decay}
        )

    def state_dict(self) -> dict[str, Any]:
        """Thresholds, beside what any method keeps."""
        own = {"thresholds": self._s.state_dict()} if self.sparsity > 0.0 else {}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        super().load_state_dict(state)
        if self.sparsity > 0.0:
            self._s.load_state_dict(state["thresholds"])
