"""Weights that no step may change, whatever the optimizer does: those that earlier tasks own.

A gradient of zero does not hold a weight: momentum goes on, Adam turns weight decay into a step of
its own size, AdamW shrinks. So the values are put back after each step, bit for bit, and what
optimizers remember of them is cleared; masking their gradients only saves the detour.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from sparsebench.sparsity.optimizer_state import state_tensors


class Fixed:
    """Positions of parameters, and the values they keep.

    Attributes:
        positions: by name a bool mask in the parameter's shape; empty if nothing is fixed.
        values: by name the values, in the same shape; others than those of ``positions`` are not
            looked at.
        unmasked: by name those of the parameters that have no mask, such as biases.
    """

    def __init__(self) -> None:
        """Nothing is fixed."""
        self.positions: dict[str, Tensor] = {}
        self.values: dict[str, Tensor] = {}
        self.unmasked: dict[str, nn.Parameter] = {}

    def hold(
        self,
        positions: Mapping[str, Tensor],
        values: Mapping[str, Tensor],
        unmasked: Mapping[str, nn.Parameter] | None = None,
    ) -> None:
        """Say anew what is fixed, and at which values (the tensors are not copied)."""
        self.positions, self.values = dict(positions), dict(values)
        self.unmasked = dict(unmasked or {})

    @torch.no_grad()
    def mask_gradients(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Zero the gradients of fixed weights."""
        parameters = {**parameters, **self.unmasked}
        for name, positions in self.positions.items():
            if (gradient := parameters[name].grad) is not None:
                gradient.masked_fill_(positions, 0.0)

    @torch.no_grad()
    def appear(self, name: str, parameter: nn.Parameter, grown: Tensor) -> None:
        """Give those of the weights at some flat positions that are fixed their values."""
        if name in self.positions:
            new = torch.zeros(parameter.numel(), dtype=torch.bool, device=parameter.device)
            new = new.index_fill_(0, grown, True).view(parameter.shape) & self.positions[name]
            parameter.copy_(torch.where(new, self.values[name], parameter))

    @torch.no_grad()
    def settle(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimizers: Iterable[torch.optim.Optimizer],
        factors: Mapping[str, Tensor] | None = None,
    ) -> None:
        """After a step: put the values back.

        Args:
            parameters: by name, those that have masks.
            optimizers: what they remember of fixed weights is cleared.
            factors: masks by name, where absent weights are 0.
        """
        optimizers, parameters = list(optimizers), {**parameters, **self.unmasked}
        for name, positions in self.positions.items():
            parameter, values = parameters[name], self.values[name]
            if factors is not None and name in factors:
                values = values * factors[name]
            parameter.copy_(torch.where(positions, values, parameter))
            for tensor in state_tensors(optimizers, parameter):
                tensor.masked_fill_(positions, 0.0)
