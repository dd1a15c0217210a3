"""Movement pruning: keep the weights that move away from zero (Sanh et al., arXiv 2005.07683).

Each weight W has a score S, zero at first, and the network uses W M(S) with M a mask of zeros and
ones. The gradient is passed straight through M, so with W' = W M(S)

    dL/dS = dL/dW' * W,    S after t steps = - rate * sum over the steps of dL/dW' * W   (SGD)

for absent weights too: their values rest, their scores go on, and they may return.

* ``movement`` (hard): M keeps the highest scores, as many as the sparsity schedule says. As a score
  of its own, ``method.prune=movement`` goes with any other method.
* ``movement_soft``: M keeps what has sigmoid(S) > t. The threshold t follows the schedule from 0 to
  ``options.threshold`` and so does the weight of a penalty, from 0 to ``options.penalty``, on the
  mean of sigmoid(S) over each layer's weights and over layers. How sparse that gets is not asked
  but found; a note of the run says by how much it missed ``sparsity``. At least ``options.floor``
  of a layer's weights stay.

Official code: huggingface/transformers, examples/research_projects/movement-pruning. The paper's
formulas are those of SGD, the code trains scores by AdamW at a rate of 0.01 under the schedule of
the weights' rate, without decay: our default is the code's, ``options.optimizer=sgd`` the paper's.
Differs on purpose: absent weights truly rest (in the code AdamW's momentum and decay still move
them), counts are exact (the code rounds down), scores are no part of the gradient's norm where it
is clipped, and all linear and conv layers are pruned unless ``selector`` says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparsebench.errors import UserError, bad_value
from sparsebench.sparsity.composed import Composed
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.methods.learned import Learned, schedule
from sparsebench.sparsity.observers import Observer
from sparsebench.sparsity.scores import Layer, needs
from sparsebench.sparsity.spec import MethodSpec, number
from sparsebench.sparsity.topk import positions, topk_indices

_OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, lr=0.0),  # each step sets the rate
    "sgd": partial(torch.optim.SGD, lr=0.0),
}


@dataclass(frozen=True)
class MovementOptions:
    """How scores are trained."""

    rate: float = number(0.01, "(0, inf)", "learning rate of the scores, before its schedule")
    optimizer: str = field(default="adam", metadata={"choices": tuple(_OPTIMIZERS)})


@dataclass(frozen=True)
class SoftOptions(MovementOptions):
    """How scores are trained, and what they must pass."""

    threshold: float = number(0.1, "(0, 0.5)", "sigmoid of the score that is needed in the end")
    penalty: float = number(400.0, "[0, inf)", "weight of the mean sigmoid in the loss, in the end")
    floor: float = number(0.005, "[0, 1)", "share of each layer that stays in any case")


class Movement(Observer):
    """Scores that rise where a weight moves away from zero."""

    dense_gradient = "always"

    def __init__(self, spec: MethodSpec) -> None:
        """Take the options of a movement method; any other has the defaults."""
        known = {f.name for f in fields(MovementOptions)}
        options = {key: v for key, v in spec.options.items() if key in known}
        self.options = MovementOptions(**options)
        self.pull = 0.0  # weight of the mean sigmoid in the loss

    def begin(self, state: TrainState) -> None:
        """All scores are zero."""
        zeros = {n: torch.zeros_like(p.detach()) for n, p in state.masks.parameters.items()}
        self.scores = Learned(zeros, _OPTIMIZERS[self.options.optimizer])

    def see(self, state: TrainState, gradients: Mapping[str, Tensor], due: bool) -> None:
        """Train the scores, on the gradients that are about to move the weights."""
        found = {name: state.masks.dense(name) * g for name, g in gradients.items()}
        if self.pull:
            for name, gradient in found.items():
                share = torch.sigmoid(self.scores[name])
                each = self.pull / (gradient.numel() * len(found))
                gradient.add_(share * (1.0 - share), alpha=each)
        first = next(iter(state.masks.parameters.values()))
        for group in self.scores.optimizer.param_groups:
            group["lr"] = self.options.rate * schedule(state.optimizers, first)
        self.scores.step(found)

    def values(self, state: TrainState) -> Mapping[str, Tensor]:
        """The scores.

        Raises:
            UserError: nothing has moved yet.
        """
        if state.step == 0:
            raise UserError(
                "method.prune=movement: nothing has moved before training, so it can't choose the "
                "first weights; start dense, with a method.sparsity_schedule, or set method.initial"
            )
        return self.scores.values

    def state_dict(self) -> dict[str, Any]:
        """Scores and their optimizer's state."""
        return self.scores.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self.scores.load_state_dict(state)


@needs("movement")
def movement(layer: Layer) -> Tensor:
    """How far a weight has moved away from zero: minus the sum of weight x gradient."""
    return layer["movement"]


class HardMovement(Composed):
    """The highest scores stay, as many as the schedule says."""

    Options = MovementOptions


class SoftMovement(Composed):
    """What passes the threshold stays."""

    Options = SoftOptions

    def __init__(self, spec: MethodSpec, *args: Any) -> None:
        """As :class:`Composed`; what would choose weights otherwise has no place here.

        Raises:
            UserError: a dial that would have no effect, or a pattern.
        """
        super().__init__(spec, *args)
        why = "scores that pass the threshold decide which weights there are"
        for dial, needed in {"prune": "movement", "drop": None, "also": None}.items():
            if (value := getattr(spec, dial)) != needed:
                raise bad_value(f"method.{dial}", value, f"{why}; only {needed} will do")
        if spec.scope != "layer":
            raise bad_value("method.scope", spec.scope, f"{why}, each by itself")
        if self.pattern.name != "unstructured":
            raise bad_value("structure", self.pattern.name, f"{why}, so zeros have no pattern")

    def after_backward(self, state: TrainState) -> bool:
        """Penalise the scores as much as the schedule says, and train them."""
        scores = self.observers["movement"]
        assert isinstance(scores, Movement)
        scores.pull = self.options.penalty * self._progress(state.step)
        return super().after_backward(state)

    def after_step(self, state: TrainState) -> None:
        """Update the masks; at the end say what has come of it."""
        super().after_step(state)
        if state.step == state.total_steps and self.sparsity > 0.0:
            state.notes.append(
                f"soft movement pruning reached a sparsity of {state.masks.sparsity:.4f} where "
                f"{self.sparsity:g} was asked; method.options.penalty sets it"
            )

    def update(self, state: TrainState) -> None:
        """Keep the weights whose scores pass the threshold of the moment."""
        threshold = self.options.threshold * self._progress(state.step)
        for name, layer in self._layers(state).items():
            scores = layer["movement"]
            kept = torch.sigmoid(scores) > threshold
            least = int(self.options.floor * scores.numel()) + 1
            if int(kept.sum()) < least:
                kept = torch.zeros_like(kept)
                kept[topk_indices(scores, least)] = True
            dropped, grown = positions(layer.mask & ~kept), positions(kept & ~layer.mask)
            self._move(state, name, dropped, grown, layer)

    def _progress(self, step: int) -> float:
        """Share of the schedule that is done."""
        assert self._window is not None
        return self._window.sparsity(self.spec, 1.0, step)
