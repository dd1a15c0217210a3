"""AC/DC: sparse and dense phases by turns (Peste et al., arXiv 2106.12379).

A compression prunes to the final sparsity by magnitude, over all layers together; the mask then
rests until the decompression, where all absent weights come back at zero. Training ends sparse.
The phases are the schedule ``alternating``: compressions and decompressions happen by turns from
``begin`` on, one ``every`` so often, and the last compression at ``end``; where turns would leave
a sparse phase just before it, that one is dense too. With the YAML's fractions, over 100 epochs:
sparse from epoch 10, dense from 15, sparse from 20, ..., dense from 75, sparse from 85 (the paper's
ResNet-50). Its CIFAR runs, 200 epochs: ``begin=10ep every=20ep end=170ep``.

The dense network at the end of the last dense phase is the method's other result. It goes into the
run's checkpoint (``method.options.dense_model=false`` to save the room): the state of the callback
``Sparsify`` has it under ``method``, ``dense_model``, as a ``state_dict`` of the network.

Official code: IST-DASLab/ACDC (policies/pruners.py, recyclers.py, manager.py). It keeps what the
optimizer remembers of pruned weights, which has decayed when they come back; here it is forgotten
at once, as for every method. ``reset_momentum`` forgets that of all weights at each decompression
(the code's reset_momentum_after_recycling, off there too). The code's mask keeps what is above the
threshold, so one weight less than it counts; here counts are exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparsebench.sparsity.composed import Composed
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.optimizer_state import forget

_SWITCH = {"choices": (True, False)}


@dataclass(frozen=True)
class PhaseOptions:
    """What happens at the turns."""

    reset_momentum: bool = field(default=False, metadata=_SWITCH)
    dense_model: bool = field(default=True, metadata=_SWITCH)


class Phases(Composed):
    """Dense and sparse phases: the parts' schedule, and the dense network kept at its end."""

    Options = PhaseOptions

    def start(self, state: TrainState) -> None:
        """As any method; there is no dense model yet."""
        self.dense_model: dict[str, Tensor] = {}
        super().start(state)

    def update(self, state: TrainState) -> None:
        """Turn to the next phase."""
        assert self._window is not None
        if self.options.dense_model and state.step == self._window.last:
            weights = state.model.state_dict()
            self.dense_model = {name: tensor.detach().clone() for name, tensor in weights.items()}
            state.notes.append(
                f"the dense network of step {state.step} is in the checkpoint: state of the "
                "callback Sparsify, under method, dense_model"
            )
        before = state.masks.sparsity
        super().update(state)
        if self.options.reset_momentum and state.masks.sparsity < before:
            forget(state.optimizers)

    def state_dict(self) -> dict[str, Any]:
        """The dense model, beside what any method keeps."""
        return {**super().state_dict(), "dense_model": dict(self.dense_model)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        super().load_state_dict(state)
        self.dense_model = {name: t.clone() for name, t in state["dense_model"].items()}
