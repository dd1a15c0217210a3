"""Growth by the gradient of all steps since the last update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.observers import Observer
from sparsebench.sparsity.scores import Layer, needs
from sparsebench.sparsity.spec import MethodSpec


class Accumulated(Observer):
    """Sum of the dense gradients of all steps since the last update."""

    dense_gradient = "always"

    def __init__(self, spec: MethodSpec) -> None:
        """Nothing seen yet."""
        self.kept: dict[str, Tensor] = {}

    def see(self, state: TrainState, gradients: Mapping[str, Tensor], due: bool) -> None:
        """Add a step's gradients."""
        for name, gradient in gradients.items():
            kept = self.kept.get(name)
            self.kept[name] = gradient.clone() if kept is None else kept.add_(gradient)

    def changed(self, state: TrainState) -> None:
        """They were for one update."""
        self.kept = {}

    def values(self, state: TrainState) -> Mapping[str, Tensor]:
        """The sums; before training the gradient of one batch."""
        return self.kept or state.data.gradients(state)

    def state_dict(self) -> dict[str, Any]:
        """The sums."""
        return dict(self.kept)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the sums back."""
        self.kept = {name: tensor.clone() for name, tensor in state.items()}


@needs("accumulated")
def accumulated(layer: Layer) -> Tensor:
    """Absolute sum of the dense gradients since the last update.

    For tables of embeddings, of which a step sees some rows only: by the gradient of one step
    (RigL, and DSL, arXiv 2402.02855, as SparseRec, arXiv 2411.12205, describes it) nothing but the
    rows of that one batch could grow. SparseRec accumulates, and so do we. A row that no step of
    the interval saw scores 0.
    """
    return torch.abs(layer["accumulated"])
