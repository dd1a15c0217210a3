"""What becomes of weights outside the masks while a pruned model is trained.

A method for :class:`sparsebench.sparsity.session.Session` whose first masks are those of pruning.

* ``zero``: they stay zero (masked fine-tuning).
* ``shadow``: the forward pass sees W x M; W learns from the gradient taken there (SR-STE, arXiv
  2102.04010; AST, arXiv 2407.20584) and is pulled outside M, W' = rate(t) (1 - M) W.
* ``decay``: the forward pass sees W (CAST, arXiv 2509.25996); outside M a soft threshold of
  learning rate x rate(t) brings W to exactly 0 and never beyond. So all shrink at one speed. A
  pull in the gradient would go through Adam's denominator and be quickest where gradients are
  small; AdamS makes it proportional to that denominator, which then cancels.

Of CAST only abstract and summaries could be read: that masks are chosen by magnitude every 10
steps, that the L1 decay is selective, adaptive and scheduled up, that scales are learned and folded
in, and that the dense model teaches. Its constants are not known to us.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sparsebench.llm.recovery.optimizer import PulledAdamW
from sparsebench.llm.recovery.spec import RecoverySpec
from sparsebench.sparsity.masks import unpack
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.time import Duration


class Recovery:
    """Keeps the pattern of a pruned model, and lets the masks follow the weights.

    Attributes:
        storage: where absent weights live, as in :class:`sparsebench.sparsity.masks.Masks`.
        decay: the pull at its full strength.
        flips: entries of masks that changed, summed over all choices.
    """

    def __init__(
        self,
        spec: RecoverySpec,
        masks: Mapping[str, Tensor],
        choose: Callable[[str, Tensor], Tensor],
        decay: float,
    ) -> None:
        """Take the parts.

        Args:
            spec: the dials.
            masks: packed bits of the first masks, by name.
            choose: of a weight's name and values, the mask that it should have.
            decay: the pull at its full strength.
        """
        self.spec, self.choose, self.decay = spec, choose, decay
        self.storage = "zeroed" if spec.absent == "zero" else "shadow"
        self.flips = 0
        self._masks = masks
        self._ramp = 0

    def start(self, state: TrainState) -> None:
        """The masks of pruning."""
        for name, parameter in state.masks.parameters.items():
            bits = self._masks[name].to(parameter.device)
            state.masks.set(name, unpack(bits, parameter.shape))
        if self.spec.absent == "decay":
            state.masks.show = lambda name, dense, factor: dense
        ramp = Duration.parse(self.spec.ramp, "recovery.ramp")
        self._ramp = ramp.steps(state.total_steps, state.steps_per_epoch)
        for optimizer in state.optimizers:
            if isinstance(optimizer, PulledAdamW):
                optimizer.pull = self._pulls(state)

    def rate(self, step: int) -> float:
        """The pull in a step: rises linearly from 0, then stays."""
        return self.decay * (min(step / self._ramp, 1.0) if self._ramp else 1.0)

    def _pulls(self, state: TrainState) -> Callable[[Tensor], Tensor | None]:
        names = {id(parameter): name for name, parameter in state.masks.parameters.items()}

        def pull(parameter: Tensor) -> Tensor | None:
            name = names.get(id(parameter))
            if name is None:
                return None
            absent = 1.0 - state.masks.factor(name)
            return absent.mul_(parameter).mul_(self.rate(state.step))

        return pull

    @torch.no_grad()
    def after_backward(self, state: TrainState) -> bool:
        """Add the pull to the gradient, where that is its place."""
        rate, spec = self.rate(state.step), self.spec
        if spec.decay_in != "coupled" or spec.absent == "zero" or not rate:
            return False
        if spec.absent == "shadow":
            state.masks.decay_absent(rate)
            return False
        for name, parameter in state.masks.parameters.items():
            if parameter.grad is not None:
                absent = 1.0 - state.masks.factor(name)
                parameter.grad.add_(absent.mul_(parameter.sign()), alpha=rate)
        return False

    @torch.no_grad()
    def after_step(self, state: TrainState) -> None:
        """Shrink what decays, and choose masks if it is time."""
        spec = self.spec
        if spec.absent == "decay" and spec.decay_in == "decoupled":
            amount = float(state.optimizers[0].param_groups[0]["lr"]) * self.rate(state.step - 1)
            for name, parameter in state.masks.parameters.items():
                shrink(parameter, state.masks.factor(name), amount)
        last = spec.absent == "decay" and state.step == state.total_steps
        if spec.absent != "zero" and (state.step % spec.every == 0 or last):
            for name in state.masks:
                before, now = state.masks[name], self.choose(name, state.masks.dense(name))
                flipped = int((before != now).sum())
                if flipped:
                    self.flips += flipped
                    state.masks.set(name, now)

    def wants_dense_gradient(self, state: TrainState) -> bool:
        """Weights outside the masks learn, unless they stay zero."""
        return self.spec.absent != "zero"

    def state_dict(self) -> dict[str, Any]:
        """The count of flips."""
        return {"flips": self.flips}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        self.flips = int(state["flips"])


def shrink(weight: Tensor, kept: Tensor, amount: float) -> None:
    """Soft threshold of the weights outside a mask, in place: sign(w) max(|w| - amount, 0).

    Args:
        weight: any shape.
        kept: 1 (or true) for those that are left alone.
        amount: at least 0.
    """
    less = torch.nn.functional.softshrink(weight, amount)
    weight.copy_(torch.where(kept != 0, weight, less))
