"""Training batches for a method that looks at data before training, or beside it.

The network is left as it was: weights, gradients, running statistics, mode and the global
random state. Batches come in the same order on all ranks, so masks made from them agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsebench.errors import UserError

if TYPE_CHECKING:
    from sparsebench.sparsity.method import TrainState

#: Batches in an order that follows from the seed; it may end, and is then begun anew.
Batches = Callable[[int], Iterator[Any]]
#: Mean loss of a network on one batch.
Loss = Callable[[nn.Module, Any], Tensor]


class NoExamples(UserError):
    """A method looks at training data, and the run has none for it."""

    def __init__(self) -> None:
        """Say what would help."""
        super().__init__(
            "method: it looks at training data, and gets none; give Session or Sparsify "
            "examples=Examples(batches, loss)"
        )


class Examples:
    """Batches of the training data and the loss on them."""

    def __init__(self, batches: Batches | None = None, loss: Loss | None = None) -> None:
        """Say where batches come from.

        Args:
            batches: gives, for a seed, an iterator over training batches.
            loss: mean loss of a network on one of them; default is cross-entropy on (x, y).
        """
        self._batches = batches
        self.loss = loss or cross_entropy

    @property
    def given(self) -> bool:
        """Whether there are any batches."""
        return self._batches is not None

    def take(self, state: TrainState, count: int) -> list[Any]:
        """The next ``count`` batches, in an order drawn from the run's generator.

        Raises:
            NoExamples: the run has no data to look at.
        """
        if self._batches is None:
            raise NoExamples
        seed = int(torch.randint(2**62, (), generator=state.generator))
        found: list[Any] = []
        while len(found) < count:
            before = len(found)
            for batch in self._batches(seed + before):
                found.append(batch)
                if len(found) == count:
                    break
            if len(found) == before:
                raise NoExamples
        device = next(state.model.parameters()).device
        return [_to(batch, device) for batch in found]

    def gradients(self, state: TrainState, batches: int = 1) -> dict[str, Tensor]:
        """Dense gradient of the mean loss at the weights as they are, of each sparse weight.

        Args:
            state: the run.
            batches: over how many batches the gradient is averaged.

        Returns:
            By name, of the weight's shape.
        """
        return self.gradients_of(state, self.take(state, batches))

    def gradients_of(self, state: TrainState, taken: list[Any]) -> dict[str, Tensor]:
        """As :meth:`gradients`, of batches already taken."""
        with undisturbed(state.model), torch.enable_grad():
            state.model.train()
            weights = state.masks.parameters
            total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
            for batch in taken:
                loss = self.loss(state.model, batch)
                found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
                for name, gradient in zip(weights, found, strict=True):
                    if gradient is not None:
                        total[name] += gradient / len(taken)
        return total


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """Mean cross-entropy on a batch (x, y)."""
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put parameters, buffers, modes and the global random state back at the end."""
    kept = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    modes = {module: module.training for module in model.modules()}
    devices = {t.device.index for t in kept.values() if t.device.type == "cuda"}
    with torch.random.fork_rng(sorted(i for i in devices if i is not None)):
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in model.state_dict().items():
                    tensor.copy_(kept[name])
            for module, training in modes.items():
                module.training = training


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: _to(value, device) for key, value in batch.items()}
    moved = [_to(value, device) for value in batch]
    return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
