"""Observers: what is gathered for scores beyond the weights, while training goes on.

A score declares by name what it looks at (:func:`sparsebench.sparsity.scores.needs`), and the
engine keeps one observer for each name. To add one, write a class here or in a file of its own
and give it a line in :mod:`sparsebench.sparsity.registry`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparsebench.sparsity.masks import pack, unpack
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.spec import MethodSpec

Tensors = dict[str, Tensor]  # for each sparse parameter, of its shape


class Observer:
    """Sees what happens to the sparse weights; all hooks may be left as they are.

    Attributes:
        dense_gradient: when it needs the gradient of absent weights, which costs FLOPs:
            ``never``, ``update`` (at updates only) or ``always``.
    """

    dense_gradient: ClassVar[str] = "never"

    def __init__(self, spec: MethodSpec) -> None:
        """Take what it needs of the method's dials."""

    def begin(self, state: TrainState) -> None:
        """Training begins; masks are still full."""

    def begin_task(self, state: TrainState) -> None:
        """A later task of a stream begins; masks are full again. What was gathered is forgotten."""
        self.begin(state)

    def see(self, state: TrainState, gradients: Mapping[str, Tensor], due: bool) -> None:
        """Dense gradients of an optimizer step (``always``), or of those with an update.

        Args:
            state: the run; weights are those of the forward pass.
            gradients: of each sparse parameter, in its shape; not to be kept or changed.
            due: whether the masks are updated after this step.
        """

    def moved(self, state: TrainState) -> None:
        """Weights have moved, masks not yet."""

    def changed(self, state: TrainState) -> None:
        """Masks are new: those of the first step, or those after an update."""

    def values(self, state: TrainState) -> Mapping[str, Tensor]:
        """What was gathered, for each sparse parameter, in its shape or flat.

        Called at updates, and before training where the first masks are chosen by it.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """All that resuming needs: tensors, numbers and strings only."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave (after :meth:`begin`)."""


class Gradient(Observer):
    """The dense gradient of the update's own step; before training, that of some batches."""

    dense_gradient = "update"

    def __init__(self, spec: MethodSpec) -> None:
        """Nothing seen yet."""
        self.batches = spec.initial_batches
        self.kept: Tensors = {}

    def begin(self, state: TrainState) -> None:
        """Forget an earlier run."""
        self.kept = {}

    def see(self, state: TrainState, gradients: Mapping[str, Tensor], due: bool) -> None:
        """Keep the gradients that the update will look at."""
        if due:
            self.kept = {name: gradient.clone() for name, gradient in gradients.items()}

    def changed(self, state: TrainState) -> None:
        """They were for one update."""
        self.kept = {}

    def values(self, state: TrainState) -> Mapping[str, Tensor]:
        """Gradients kept, or the mean of ``initial_batches`` batches at the weights as they are."""
        return self.kept or state.data.gradients(state, self.batches)


class Momentum(Observer):
    """Decayed sum of the dense gradients of all steps: m = momentum x m + g."""

    dense_gradient = "always"

    def __init__(self, spec: MethodSpec) -> None:
        """Nothing seen yet."""
        self.decay = spec.momentum
        self.kept: Tensors = {}

    def begin(self, state: TrainState) -> None:
        """Forget an earlier run."""
        self.kept = {}

    def see(self, state: TrainState, gradients: Mapping[str, Tensor], due: bool) -> None:
        """Add a step's gradients."""
        for name, gradient in gradients.items():
            kept = self.kept.get(name)
            kept = torch.zeros_like(gradient) if kept is None else kept.to(gradient.device)
            self.kept[name] = kept.mul_(self.decay).add_(gradient)

    def values(self, state: TrainState) -> Mapping[str, Tensor]:
        """The sums; before training those of one batch."""
        return self.kept or state.data.gradients(state)

    def state_dict(self) -> dict[str, Any]:
        """The sums."""
        return dict(self.kept)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the sums back."""
        self.kept = {name: tensor.clone() for name, tensor in state.items()}


class Explored(Observer):
    """Where a connection has ever been."""

    def __init__(self, spec: MethodSpec) -> None:
        """Nothing seen yet."""
        self.kept: Tensors = {}

    def begin(self, state: TrainState) -> None:
        """Forget an earlier run."""
        self.kept = {
            n: torch.zeros_like(p, dtype=torch.bool) for n, p in state.masks.parameters.items()
        }

    def changed(self, state: TrainState) -> None:
        """Add the present connections."""
        for name, mask in state.masks.items():
            self.kept[name] |= mask

    def values(self, state: TrainState) -> Mapping[str, Tensor]:
        """Bool, true where a connection is or was."""
        return self.kept

    def state_dict(self) -> dict[str, Any]:
        """As bits."""
        return {name: pack(mask) for name, mask in self.kept.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the bits back."""
        for name, bits in state.items():
            before = self.kept[name]
            self.kept[name] = unpack(bits, before.shape).to(before.device)
