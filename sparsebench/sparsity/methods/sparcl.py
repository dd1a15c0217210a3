"""SparCL: one sparse network for all tasks of a stream, whose masks know when a task begins.

Source: Wang et al., arXiv 2209.09476; code github.com/neu-spiral/SparCL. Two of its three parts are
here, each for itself (the third, removal of data, goes with any method: ``task.options.remove``).

* TDM, dynamic masking. A weight matters by CWI, ``|w| + alpha |g| + beta |h|``: g is the gradient
  of the loss on the present task's data, h that on the replay buffer. When a task begins, random
  connections are added (``p_inter``, a share of all places), so that it has weights nobody needs;
  they are trained until the first update, which shrinks to the target. Each update first removes
  the least important (``p_intra`` of all places), then adds as many at random. The last one adds
  none. ``p_inter`` and ``p_intra`` of 0 turn this part off.
* DGM, gradient masking. Of each layer only the gradients of the highest ``alpha |g| + beta |h|``
  are applied: a share ``dgm`` of the weights there are at the target. Which, is decided anew every
  ``dgm_every`` steps, and after the masks have changed.

The paper looks at g and h apart (``gradients=separate``), for which a batch of each is presented
once more when one of the parts decides, and counted. The code takes the gradient of the step's own
loss for both (``merged``, importance ``alpha |gradient|``). Without replay they are the same.

Where we differ: counts are exact (the code goes by percentiles) and follow the distribution asked
for (all layers alike in the code, as with ``distribution=strict_uniform``); new connections learn
from their first step on (with ``dgm_refresh=false`` from the next decision on, as in the code). The
share of gradients is one of the weights: 0.8 is the code's gradient sparsity of 80 % at 75 %.
``method.every`` of 10 % is every fifth of the code's 50 epochs of a task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparsebench.errors import UserError, bad_value
from sparsebench.sparsity.composed import Composed
from sparsebench.sparsity.examples import Examples
from sparsebench.sparsity.fields import read_options
from sparsebench.sparsity.forecast import counts
from sparsebench.sparsity.masks import pack, unpack
from sparsebench.sparsity.method import Densities, TrainState
from sparsebench.sparsity.observers import Observer
from sparsebench.sparsity.scores import Layer, needs
from sparsebench.sparsity.spec import MethodSpec, StructureSpec, number, whole
from sparsebench.sparsity.topk import topk_indices
from sparsebench.sparsity.window import Window


@dataclass(frozen=True)
class Options:
    """Of SparCL, beside the dials."""

    p_inter: float = number(0.01, "[0, 1)", "share of all places added when a task begins")
    p_intra: float = number(0.005, "[0, 1)", "share of all places exchanged at an update")
    alpha: float = number(0.5, "[0, inf)", "weight of the present task's gradient")
    beta: float = number(1.0, "[0, inf)", "weight of the buffer's gradient")
    gradients: str = field(default="separate", metadata={"choices": ("separate", "merged")})
    dgm: float | None = number(0.8, "(0, 1)", "share of weights whose gradient is applied")
    dgm_every: int = whole(30, 1, "steps between two choices of gradients")
    dgm_refresh: bool = True


@dataclass(frozen=True)
class Warm(Window):
    """A window until whose first update the network is denser.

    Attributes:
        extra: share of all weights that it has beyond the target.
    """

    extra: float = 0.0

    def sparsity(self, spec: MethodSpec, final: float, step: int) -> float:
        """The sparsity of the network that trains after ``step`` steps."""
        return max(final - self.extra, 0.0) if step < self.begin + self.every else final


class Sensitivity(Observer):
    """What an update sees of the gradients: alpha |g| + beta |h| of present weights."""

    def __init__(self, spec: MethodSpec) -> None:
        """Nothing seen yet."""
        self.options = read_options(Options, spec.options, "method.options")
        self.kept: dict[str, Tensor] = {}

    def begin(self, state: TrainState) -> None:
        """Forget an earlier run."""
        self.kept = {}

    def see(self, state: TrainState, gradients: Mapping[str, Tensor], due: bool) -> None:
        """Keep what the update will look at."""
        if due:
            self.kept = sensitivity(state, self.options, gradients)

    def changed(self, state: TrainState) -> None:
        """It was for one update."""
        self.kept = {}

    def values(self, state: TrainState) -> Mapping[str, Tensor]:
        """As kept; zero where an update is not due."""
        return self.kept or {n: torch.zeros_like(p) for n, p in state.masks.parameters.items()}


@needs("sensitivity")
def cwi(layer: Layer) -> Tensor:
    """|w| + alpha |g| + beta |h|, continual weight importance (arXiv 2209.09476)."""
    return layer.weight.abs() + layer["sensitivity"]


def apart(state: TrainState, options: Options) -> bool:
    """Whether the two gradients are looked at apart: as long as there is something to replay."""
    return options.gradients == "separate" and state.memory.given


def sensitivity(
    state: TrainState, options: Options, own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What importance owes to gradients: alpha |g| + beta |h|, 0 where a weight is absent.

    Args:
        state: the run.
        options: the two factors, and whether g and h are taken apart.
        own: gradients of the step that is under way.
    """
    if apart(state, options):
        present, kept = _gradients(state, state.data), _gradients(state, state.memory)
        found = {
            n: options.alpha * g.abs() + options.beta * kept[n].abs() for n, g in present.items()
        }
    else:
        found = {name: options.alpha * gradient.abs() for name, gradient in own.items()}
    return {name: tensor * state.masks.factor(name) for name, tensor in found.items()}


def _gradients(state: TrainState, examples: Examples) -> dict[str, Tensor]:
    """Those of one batch, which is counted."""
    (batch,) = examples.take(state, 1)
    state.looked_at += len(batch[0])
    return examples.gradients_of(state, [batch])


class SparCL(Composed):
    """Expands at a new task, exchanges within it, and applies a part of the gradients only.

    Attributes:
        kind: what a table of kinds says of it, as its parts do not tell.
    """

    Options = Options
    kind: ClassVar[dict[str, str]] = {"when": "during", "masks": "dynamic"}

    def __init__(self, spec: MethodSpec, sparsity: float, *args: Any) -> None:
        """As :class:`Composed`.

        Raises:
            UserError: more is to be exchanged than there is, or a dial that means nothing here.
        """
        super().__init__(spec, sparsity, *args)
        if sparsity and self.options.p_intra >= 1.0 - sparsity:
            allowed = f"fewer than all weights that sparsity={sparsity} leaves can be exchanged"
            raise bad_value("method.options.p_intra", self.options.p_intra, allowed)
        self._chosen: dict[str, Tensor] = {}  # which gradients are applied, in the weight's type
        self._due = True

    def _find_parts(self, spec: MethodSpec, structure: StructureSpec) -> None:
        super()._find_parts(replace(spec, prune="cwi"), structure)
        for said, wrong in (
            (f"structure={structure.name}", structure.name != "unstructured"),
            (f"method.storage={spec.storage}", spec.storage != "zeroed"),
            (f"method.drop={spec.drop}", spec.drop is not None),
            (
                f"method.sparsity_schedule={spec.sparsity_schedule}",
                spec.sparsity_schedule != "constant",
            ),
        ):
            if wrong:
                raise UserError(f"{said}: not with method.engine={spec.engine}, which decides it")

    # --- masks -------------------------------------------------------------------------------

    def window(self, total_steps: int, steps_per_epoch: int) -> Window:
        """Denser until the first update."""
        window = super().window(total_steps, steps_per_epoch)
        return Warm(**vars(window), extra=self.options.p_inter)

    def start(self, state: TrainState) -> None:
        """Masks for the first task."""
        self._sparse = state.masks.parameters
        self._chosen, self._due = {}, True
        super().start(state)

    def _place(self, state: TrainState, target: float) -> None:
        """The first masks have the target's counts, and then more."""
        super()._place(state, self.sparsity)
        self._retarget(state, target)

    def begin_task(self, state: TrainState, task: int) -> None:
        """Expand (the first masks are expanded already)."""
        if self.sparsity:
            self._retarget(state, self._target(0))
            self._changed(state)
        self._due = True

    def update(self, state: TrainState) -> None:
        """Shrink below the target and expand to it; the last time, to the target only."""
        assert self._window is not None
        before = state.masks.version
        if state.step < self._window.last:
            self._retarget(state, self.sparsity + self.options.p_intra)
        self._retarget(state, self.sparsity)
        self._due |= self.options.dgm_refresh and state.masks.version != before

    # --- gradients ---------------------------------------------------------------------------

    @torch.no_grad()
    def after_backward(self, state: TrainState) -> bool:
        """Apply a part of the gradients; an update looks at what is left of them."""
        if self.sparsity and self.options.dgm:
            if self._decides(state):
                self._choose(state)
            for name, factor in self._chosen.items():
                if (gradient := state.masks.parameters[name].grad) is not None:
                    gradient.mul_(factor)
        return super().after_backward(state)

    def _decides(self, state: TrainState) -> bool:
        return self._due or not self._chosen or state.step % self.options.dgm_every == 0

    def _choose(self, state: TrainState) -> None:
        """Of each layer, the places whose gradients are applied from now on."""
        weights = state.masks.parameters
        own = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in weights.items()}
        found = sensitivity(state, self.options, own)
        for name, kept in self._applied({n: p.shape for n, p in weights.items()}).items():
            there = state.masks[name].reshape(-1)
            chosen = topk_indices(found[name].reshape(-1), min(kept, int(there.sum())), there)
            factor = torch.zeros_like(weights[name]).reshape(-1).index_fill_(0, chosen, 1.0)
            self._chosen[name] = factor.view(weights[name].shape)
        self._due = False

    def _applied(self, shapes: Mapping[str, torch.Size]) -> dict[str, int]:
        """How many gradients of each layer are applied."""
        return {
            n: round(self.options.dgm * k) for n, k in counts(self, shapes, self.sparsity).items()
        }

    def gradient_densities(self, state: TrainState) -> Densities:
        """A step computes the gradients that it applies; all where it chooses by its own."""
        if self._decides(state) and not apart(state, self.options):
            return {}
        return self.forecast_gradients({n: p.shape for n, p in state.masks.parameters.items()})

    def forecast_gradients(self, shapes: Mapping[str, torch.Size], *when: Any) -> Densities:
        """The same before training, without the steps that choose."""
        if not self.sparsity or not self.options.dgm:
            return {}
        found = self._applied(shapes)
        return {"weight_gradient": {n: kept / shapes[n].numel() for n, kept in found.items()}}

    # --- checkpoints -------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """With the gradients that are applied."""
        chosen = {name: pack(factor != 0) for name, factor in self._chosen.items()}
        return {**super().state_dict(), "chosen": chosen, "due": self._due}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        super().load_state_dict(state)
        self._due = bool(state["due"])
        for name, bits in state["chosen"].items():
            weight = self._sparse[name]
            self._chosen[name] = unpack(bits.to(weight.device), weight.shape).to(weight.dtype)
