"""Quantities that a method learns beside the network, such as scores and thresholds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer

from sparsebench.errors import UserError

Group = dict[str, Any]  # hyperparameters, as an optimizer keeps them


class Learned:
    """Tensors by name, moved by an optimizer of their own; all of it goes into the checkpoint.

    They are no parameters of the network: its ``state_dict`` keeps its keys, and clipping by the
    norm of all gradients does not see theirs.
    """

    def __init__(
        self, values: Mapping[str, Tensor], optimizer: Callable[[list[nn.Parameter]], Optimizer]
    ) -> None:
        """Begin at ``values``; ``optimizer`` makes one from the list of them."""
        self._parameters = {name: nn.Parameter(value.clone()) for name, value in values.items()}
        self.optimizer = optimizer(list(self._parameters.values()))

    def __getitem__(self, name: str) -> Tensor:
        """One of the tensors; not to be written to."""
        return self._parameters[name].detach()

    @property
    def values(self) -> dict[str, Tensor]:
        """All tensors by name; not to be written to."""
        return {name: self[name] for name in self._parameters}

    @torch.no_grad()
    def shift(self, name: str, amount: Tensor) -> None:
        """Add a number to one of the tensors."""
        self._parameters[name].add_(amount)

    def step(self, gradients: Mapping[str, Tensor]) -> None:
        """One step of the optimizer; what has no gradient rests."""
        for name, parameter in self._parameters.items():
            parameter.grad = gradients.get(name)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """The tensors, and what the optimizer remembers of them."""
        return {"values": self.values, "optimizer": self.optimizer.state_dict()["state"]}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        for name, value in state["values"].items():
            self._parameters[name].copy_(value)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})


def group_of(optimizers: Iterable[Optimizer], parameter: nn.Parameter) -> tuple[Optimizer, Group]:
    """The optimizer that moves a weight, and its hyperparameters for it.

    Raises:
        UserError: none moves it.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if any(parameter is other for other in group["params"]):
                return optimizer, {key: v for key, v in group.items() if key != "params"}
    raise UserError("optimizer: a sparse weight is moved by none")


def kind_of(optimizer: Optimizer) -> type[Optimizer]:
    """The class of ``torch.optim`` that an optimizer is, or derives from.

    Raises:
        UserError: it is none of them, so another of its kind can't be made.
    """
    for kind in type(optimizer).__mro__:
        if kind.__module__.startswith("torch.optim") and kind is not optim.Optimizer:
            return kind
    name = type(optimizer).__name__
    raise UserError(f"optimizer={name}: the method needs another of its kind, from torch.optim")


def schedule(optimizers: Iterable[Optimizer], parameter: nn.Parameter) -> float:
    """Learning rate of a weight relative to the one it was given at the beginning."""
    _, group = group_of(optimizers, parameter)
    initial = group.get("initial_lr", group["lr"])
    return float(group["lr"]) / float(initial) if initial else 1.0
