"""What an optimizer remembers of a weight, and how to make it forget."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn, optim
from torch.optim import Optimizer

from sparsebench.errors import UserError

#: Optimizers whose state of a weight is elementwise, so that zero means "never seen".
_KNOWN: set[type[Optimizer]] = {
    optim.SGD, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.Adamax, optim.RMSprop,
    optim.Adagrad, optim.Adadelta,
}  # fmt: skip


def register_optimizer(optimizer: type[Optimizer]) -> None:
    """Declare that all tensors an optimizer keeps in a weight's shape may be set to zero.

    A weight, gradient and state of zero must also stay zero in its step.
    """
    _KNOWN.add(optimizer)


def check_optimizer(optimizer: Optimizer) -> None:
    """Refuse an optimizer whose state we would not know how to clear.

    Raises:
        UserError: the class is not known, nor derived from a known one.
    """
    if not isinstance(optimizer, tuple(_KNOWN)):
        names = sorted(kind.__name__ for kind in _KNOWN)
        raise UserError(
            f"optimizer={type(optimizer).__name__}: its state of a dropped weight can't be "
            f"cleared; known are {', '.join(names)}; declare your own with "
            "sparsebench.sparsity.register_optimizer"
        )


def state_tensors(optimizers: Iterable[Optimizer], parameter: nn.Parameter) -> list[Tensor]:
    """All tensors of the shape of ``parameter`` that optimizers keep for it."""
    return [
        value
        for optimizer in optimizers
        for value in optimizer.state.get(parameter, {}).values()
        if isinstance(value, Tensor) and value.shape == parameter.shape
    ]


def forget(optimizers: Iterable[Optimizer]) -> None:
    """Leave optimizers as if they had taken no step."""
    for optimizer in optimizers:
        if isinstance(optimizer, optim.Adagrad):  # the one that has a state from the beginning
            for state in optimizer.state.values():
                state["step"].zero_()
                state["sum"].fill_(optimizer.defaults["initial_accumulator_value"])
        else:
            optimizer.state.clear()
