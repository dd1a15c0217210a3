"""What an optimizer remembers of a weight, and how to make it forget."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from sparsebench.errors import UserError

#: Optimizers whose state of a weight is elementwise, so that zero means "never seen".
_KNOWN: set[str] = {
    "SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta",
}  # fmt: skip


def register_optimizer(optimizer: type[torch.optim.Optimizer]) -> None:
    """Declare that all tensors an optimizer keeps in a weight's shape may be set to zero."""
    _KNOWN.add(optimizer.__name__)


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer whose state we would not know how to clear.

    Raises:
        UserError: the class is not known and was not registered.
    """
    if not any(base.__name__ in _KNOWN for base in type(optimizer).__mro__):
        raise UserError(
            f"optimizer={type(optimizer).__name__}: its state of a dropped weight can't be "
            f"cleared; known are {', '.join(sorted(_KNOWN))}; declare your own with "
            "sparsebench.sparsity.optimizer_state.register_optimizer"
        )


def state_tensors(
    optimizers: Iterable[torch.optim.Optimizer], parameter: torch.nn.Parameter
) -> list[Tensor]:
    """All tensors of the shape of ``parameter`` that optimizers keep for it."""
    return [
        value
        for optimizer in optimizers
        for value in optimizer.state.get(parameter, {}).values()
        if isinstance(value, Tensor) and value.shape == parameter.shape
    ]
