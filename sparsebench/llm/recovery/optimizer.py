"""AdamW with a pull on some weights that its momentum does not see (AST, arXiv 2407.20584).

With the momentum m of the loss's gradients alone and the pull d, an update moves along
u = m + d, divided by the root of the running mean of u^2 (the authors' GPT-2 optimizer: where
weights may be pulled that mean is of u and not of the gradient, also while d is 0). There the mask
has become an integer, so that its complement is -1 and -2; here it is 1 minus the mask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class PulledAdamW(torch.optim.AdamW):
    """AdamW whose update has a term behind the first moment and inside the denominator.

    Attributes:
        pull: of a parameter the term, of its shape; None for those without.
    """

    pull: Callable[[Tensor], Tensor | None] = staticmethod(lambda parameter: None)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)
        return loss

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2), rate = self.state[parameter], group["betas"], float(group["lr"])
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        steps = float(state["step"])
        parameter.mul_(1.0 - rate * group["weight_decay"])
        momentum, squares = state["exp_avg"], state["exp_avg_sq"]
        momentum.lerp_(gradient, 1.0 - beta1)
        pull = self.pull(parameter)
        update = momentum if pull is None else momentum + pull
        seen = gradient if pull is None else update
        squares.mul_(beta2).addcmul_(seen, seen, value=1.0 - beta2)
        root = (squares / (1.0 - beta2**steps)).sqrt_().add_(group["eps"])
        parameter.addcdiv_(update, root, value=-rate / (1.0 - beta1**steps))
