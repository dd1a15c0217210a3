"""Which absent shadow weights learn: a second, wider mask, for the backward pass.

Weights within reach learn, present or not. Those beyond it sleep: their values are kept aside, the
parameter is 0 there and so are its gradient and its optimizer state. As every known optimizer maps
(0, 0, 0) to 0, nothing moves them, neither momentum nor weight decay, at no cost in a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsebench.sparsity.optimizer_state import state_tensors
from sparsebench.sparsity.topk import count


class Reach:
    """The reach of each parameter, and the values of what lies beyond.

    Attributes:
        factors: by name, 1 within reach, in the weight's type and shape; empty if all learn.
    """

    def __init__(self) -> None:
        """Everything is within reach."""
        self.factors: dict[str, Tensor] = {}
        self._asleep: dict[str, Tensor] = {}

    @torch.no_grad()
    def set(
        self,
        parameters: Mapping[str, nn.Parameter],
        within: Mapping[str, Tensor],
        optimizers: Iterable[torch.optim.Optimizer],
    ) -> None:
        """Say anew, for all parameters, what is within reach; between two steps.

        Args:
            parameters: by name, with the values that absent weights have of their own.
            within: by name the flat positions within reach.
            optimizers: what they remember of weights beyond is forgotten.
        """
        optimizers = list(optimizers)
        for name, parameter in parameters.items():
            whole = self.whole(name, parameter.detach())
            flat = torch.zeros(whole.numel(), dtype=whole.dtype, device=whole.device)
            flat.index_fill_(0, within[name], 1.0)
            factor = self.factors[name] = torch.empty_like(whole).copy_(flat.view(whole.shape))
            kept = whole * factor
            self._asleep[name] = whole - kept
            parameter.copy_(kept)
            for tensor in state_tensors(optimizers, parameter):
                tensor.mul_(factor)

    def whole(self, name: str, awake: Tensor) -> Tensor:
        """The weights within reach, with those that sleep."""
        return awake + self._asleep[name] if name in self._asleep else awake

    def densities(self) -> dict[str, float]:
        """By name, the share that is within reach."""
        return {n: count(f != 0) / f.numel() for n, f in self.factors.items()}

    def state_dict(self) -> dict[str, Any]:
        """Tensors by name."""
        return {"factors": dict(self.factors), "asleep": dict(self._asleep)}

    def load_state_dict(
        self, state: Mapping[str, Any], parameters: Mapping[str, nn.Parameter]
    ) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.factors, self._asleep = (
            {n: t.to(parameters[n].device, copy=True) for n, t in state[key].items()}
            for key in ("factors", "asleep")
        )
