"""The interface of a sparsity method, and what it sees of a training run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from sparsebench.sparsity.examples import Examples
from sparsebench.sparsity.masks import Masks

#: Of ``input_gradient`` (of the activations) and ``weight_gradient``, either or both: for each
#: sparse weight the share of it that the product reads, or writes.
Densities = Mapping[str, Mapping[str, float]]


@dataclass
class TrainState:
    """What a method sees of a run; it writes through ``masks`` only.

    Attributes:
        model: the network being trained.
        optimizers: all optimizers that move its weights.
        masks: the owner of the sparse weights.
        generator: the run's source of randomness, on the CPU and in the checkpoint.
        total_steps: optimizer steps of the whole run.
        steps_per_epoch: optimizer steps of one epoch.
        step: optimizer steps done.
        notes: sentences for the result, such as an update that was left out.
        data: training batches, for methods that look at some beside training.
        resuming: masks of a checkpoint follow, so the first ones need no choosing.
        memory: batches of what is replayed of earlier tasks, if anything is.
        outputs: where training goes from task to task, bool over the network's outputs: those of
            the present task.
        accuracy: of the present task, in percent: on held-out samples, or on those of training
            where none are held out. A loop that measures none leaves it out.
        looked_at: samples that the method took forward and backward beside training since they
            were last counted.
    """

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    masks: Masks
    generator: torch.Generator
    total_steps: int
    steps_per_epoch: int
    step: int = 0
    notes: list[str] = field(default_factory=list)
    data: Examples = field(default_factory=Examples)
    resuming: bool = False
    memory: Examples = field(default_factory=Examples)
    outputs: torch.Tensor | None = None
    accuracy: Callable[[], float] | None = None
    looked_at: int = 0


class Method(Protocol):
    """What the training loop asks of a method; see :class:`Composed` for the usual one.

    Attributes:
        storage: where absent weights live: ``zeroed``, ``frozen`` or ``shadow``.
    """

    storage: str

    def start(self, state: TrainState) -> None:
        """Set the masks of step 0."""

    def after_backward(self, state: TrainState) -> bool:
        """Look at the dense gradients; true if this iteration's optimizer step is replaced.

        A penalty on the weights goes here: add its gradient to theirs.
        """

    def after_step(self, state: TrainState) -> None:
        """Weights have moved, ``state.step`` counts this step; update the masks if it is time."""

    def wants_dense_gradient(self, state: TrainState) -> bool:
        """Whether this iteration needs the gradient of absent weights (it costs FLOPs)."""

    def state_dict(self) -> dict[str, Any]:
        """All that resuming needs: tensors, numbers and strings only."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""


def gradient_densities(method: object, state: TrainState) -> Densities:
    """What the backward pass of the coming step computes, where the masks do not tell.

    A method may have a ``gradient_densities(state)`` that says it; empty if it has none. Then the
    gradient of the activations costs what the forward pass does, and so does that of the weights
    unless it is dense (``wants_dense_gradient``, or absent weights that learn).
    """
    found = getattr(method, "gradient_densities", None)
    return found(state) if found else {}
