"""Negative weights that hardly moved: what keeps ReLUs dead, and so what AP and NeurRev remove.

Sources: AP, "Activate-while-Pruning" (Liu et al., arXiv 2212.06145) and its code
(github.com/Martin1937/AP-Activate-While-Pruning-); NeurRev (Li et al., ICLR 2024, openreview
60lNoatp7u). A neuron whose ReLU is 0 for all data gets no gradient, so its incoming weights stay
where they are, and large negative ones keep it dead. Both methods look at the negative weights with
the least change ``|w_now - w_then|`` since the masks last changed, and remove some of them in place
of as many that the pruner would have taken: ``method.also=still``, with ``also_share`` as their
part of what goes. With a pruner such as IMP that is AP (``w_then``: the weights at the beginning of
the round, after rewinding); in the drop half of dynamic sparse training it is NeurRev.

Where this differs on purpose: counts are exact (AP's code removes one weight more, and all at the
threshold); only selected weights are looked at (the code takes all parameters named ``weight``, BN
scales too). NeurRev's text at hand is an abstract and a review, so its rule is AP's within a drop,
as the authors' words allow. Weight decay moves every weight a little, also those of dead neurons:
the rule sees the change that it has made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.observers import Observer, Tensors
from sparsebench.sparsity.scores import Layer, needs
from sparsebench.sparsity.spec import MethodSpec


class Change(Observer):
    """How far each weight has come since the masks last changed (a dense copy is kept)."""

    def __init__(self, spec: MethodSpec) -> None:
        """Nothing seen yet."""
        self.kept: Tensors = {}

    def begin(self, state: TrainState) -> None:
        """Nothing has moved yet."""
        self.changed(state)

    def changed(self, state: TrainState) -> None:
        """A new round begins here."""
        self.kept = {n: p.detach().clone() for n, p in state.masks.parameters.items()}

    def values(self, state: TrainState) -> Mapping[str, Tensor]:
        """Weights now less weights then."""
        return {n: p.detach() - self.kept[n] for n, p in state.masks.parameters.items()}

    def state_dict(self) -> dict[str, Any]:
        """The weights of then."""
        return dict(self.kept)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self.kept = {n: t.to(self.kept[n].device, copy=True) for n, t in state.items()}


@needs("change")
def still(layer: Layer) -> Tensor:
    """Change of a negative weight, the least first to go; others are protected, at infinity.

    Of weights that have not moved at all the larger goes first, since it holds more ReLUs down.
    """
    change = layer["change"].abs()
    order = torch.where(change > 0, change, -layer.weight.abs())
    return order.masked_fill(layer.weight >= 0, torch.inf)
