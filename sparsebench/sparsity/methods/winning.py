"""Masks that are learned for each task: WSN (Kang et al., ICML 2022) and SupSup (arXiv 2006.14769).

Each weight w has a score s. At each step the mask m of a layer keeps the weights of the highest |s|
(edge-popup, Ramanujan et al. 2020, arXiv 1911.13299), and the gradient is passed straight through
it, for absent weights too: with w' = w m,

    dL/ds = dL/dw' * w * sign(s),    dL/dw = dL/dw' * m

* WSN (``options.weights=trained``): weights are trained too, but for those that earlier tasks own,
  and scores go on from task to task (``scores=carried``), so that reuse is learned. ``anew`` is the
  paper's table 3, which uses the network up. Heads are dense (``selector=not_last``).
* SupSup (``weights=constant``): each weight is + or - the standard deviation of He's initialisation
  (fan-in), by the sign it was built with, and is never trained; scores begin ``anew`` with each
  task, or at the ``mean`` of those that earlier tasks ended with (the paper's transfer). To store
  the weights takes a seed, so only masks count as bytes.

``options.infer`` finds the task of a sample where nobody tells it (SupSup, one-shot): with the k
masks superposed, sum of alpha_j m_j at alpha = 1/k, it is the task whose alpha would lower the
entropy of the answer fastest. With ``infer=halves`` that is asked of the k tasks, then of
the better half of them, and so on until one is left (the paper's binary search: log2(k) questions).
All that has no mask must be the same for all tasks then (``options.rest=first``), but for the last
layer. The paper's other objective, G, needs outputs of no class, which a stream does not have.

Official codes: ihaeyong/WSN, RAIVNLab/supsup. Scores are drawn as there, uniform within one over
the square root of the fan-in, and have an Adam of their own that begins anew with each task, at a
rate under the schedule of the weights' rate. On purpose we differ: counts are exact (WSN's
percentile misses by one); absent weights truly rest; a task is tested with the masks of its last
step; WSN's code leaves trained affine norms unprotected, here they are each task's own;
and a task is inferred for each sample alone, where SupSup's code does it once for a whole batch of
one task, which tells it more than a sample does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, jvp

from sparsebench.errors import UserError, bad_value
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.methods.isolated import Isolated, Kept
from sparsebench.sparsity.methods.learned import Learned, schedule
from sparsebench.sparsity.observers import Observer
from sparsebench.sparsity.scores import Layer, needs
from sparsebench.sparsity.spec import MethodSpec, StructureSpec, number

_SEED_BYTES = 8


@dataclass(frozen=True)
class ScoreOptions:
    """How scores are trained, and what those of a new task begin at."""

    rate: float = number(0.001, "(0, inf)", "learning rate of the scores, before its schedule")
    scores: str = field(default="carried", metadata={"choices": ("carried", "anew", "mean")})


@dataclass(frozen=True)
class Options(ScoreOptions, Kept):
    """What a task's network is made of beside its masks."""

    weights: str = field(default="trained", metadata={"choices": ("trained", "constant")})
    infer: bool | str = field(default=False, metadata={"choices": (False, True, "halves")})


def score_gradient(weight: Tensor, gradient: Tensor, score: Tensor) -> Tensor:
    """dL/ds from the gradient at the masked weights; all of one shape."""
    return gradient * weight * score.sign()


class Popup(Observer):
    """Scores of all weights, trained beside them."""

    dense_gradient = "always"

    def __init__(self, spec: MethodSpec) -> None:
        """Take the options of a method of learned masks; any other has the defaults."""
        known = {f.name for f in fields(ScoreOptions)}
        self.options = ScoreOptions(**{k: v for k, v in spec.options.items() if k in known})

    def begin(self, state: TrainState) -> None:
        """Draw scores."""
        self._past: dict[str, Tensor] = {}  # sums of the scores that tasks ended with
        self._tasks = 0
        self._train(_drawn(state))

    def begin_task(self, state: TrainState) -> None:
        """Scores of a new task, and an Adam that remembers nothing."""
        if self.options.scores == "carried":
            self._train(self.scores.values)
        elif self.options.scores == "anew":
            self._train(_drawn(state))
        else:
            self._tasks += 1
            for name, score in self.scores.values.items():
                self._past[name] = self._past.get(name, 0.0) + score
            self._train({name: total / self._tasks for name, total in self._past.items()})

    def _train(self, start: Mapping[str, Tensor]) -> None:
        self.scores = Learned(start, lambda values: torch.optim.Adam(values, lr=0.0))

    def see(self, state: TrainState, gradients: Mapping[str, Tensor], due: bool) -> None:
        """One step of the scores, on the gradients that are about to move the weights."""
        first = next(iter(state.masks.parameters.values()))
        for group in self.scores.optimizer.param_groups:
            group["lr"] = self.options.rate * schedule(state.optimizers, first)
        self.scores.step(
            {
                name: score_gradient(state.masks.dense(name), gradient, self.scores[name])
                for name, gradient in gradients.items()
            }
        )

    def values(self, state: TrainState) -> Mapping[str, Tensor]:
        """The scores."""
        return self.scores.values

    def state_dict(self) -> dict[str, Any]:
        """Scores, their optimizer's state, and the sums of earlier ones."""
        return {"scores": self.scores.state_dict(), "past": self._past, "tasks": self._tasks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self.scores.load_state_dict(state["scores"])
        self._past = {name: total.clone() for name, total in state["past"].items()}
        self._tasks = state["tasks"]


@needs("popup")
def popup(layer: Layer) -> Tensor:
    """Absolute value of a score that is learned beside the weight."""
    return layer["popup"].abs()


class Winning(Isolated):
    """Each task learns which weights it uses.

    Attributes:
        infers_task: it can do without being told the task.
    """

    Options = Options

    @property
    def infers_task(self) -> bool:
        """Whether :meth:`infer` may be asked."""
        return bool(self.options.infer)

    def _find_parts(self, spec: MethodSpec, structure: StructureSpec) -> None:
        super()._find_parts(spec, structure)
        only = {"initial": "popup", "prune": "popup", "storage": "frozen", "reuse": "anywhere"}
        for dial, needed in {**only, "drop": None}.items():
            if getattr(spec, dial) != needed:
                said = f"learned scores decide which weights there are; only {needed} will do"
                raise bad_value(f"method.{dial}", getattr(spec, dial), said)
        if self.options.infer and self.options.rest != "first":
            raise UserError(
                f"method.options.infer={str(self.options.infer).lower()}: masks alone tell tasks "
                "apart, so it needs method.options.rest=first"
            )

    # --- from task to task -------------------------------------------------------------------

    @torch.no_grad()
    def start(self, state: TrainState) -> None:
        """As any isolating method; constant weights come first."""
        if self.options.weights == "constant" and not state.resuming:
            for parameter in state.masks.parameters.values():
                parameter.copy_(parameter.sign() * math.sqrt(2.0 / _fan_in(parameter)))
        super().start(state)
        self._fix(state)

    def _open(self, state: TrainState) -> None:
        """Any weight may be used, at the value it has: owned ones have not moved."""
        for name in state.masks:
            state.masks.set(name, torch.ones_like(state.masks[name]))
        self._hold(state)

    def _hold(self, state: TrainState) -> None:
        super()._hold(state)
        self._fix(state)

    def _fix(self, state: TrainState) -> None:
        """Constant weights are fixed, whoever owns them."""
        if self.options.weights == "constant":
            values = self.vault.fresh
            every = {name: torch.ones_like(t, dtype=torch.bool) for name, t in values.items()}
            state.masks.fixed.hold(every, values)

    # --- what a stream asks ------------------------------------------------------------------

    def infer(self, state: TrainState, x: Tensor, among: Tensor, tasks: int) -> Tensor:
        """The task of each sample, by the sample alone.

        Args:
            state: the run; the network is in eval mode and shows sparse weights.
            x: samples (batch, ...).
            among: outputs of the classes seen so far, bool [outputs].
            tasks: number of tasks so far; the last one may still be trained.

        Returns:
            Numbers of tasks, int64 [batch]; of equal ones the lowest.

        Source: SupSup (arXiv 2006.14769), section 3.3, one-shot or binary.
        """
        masked = [self._masked(state, task) for task in range(tasks)]

        def slopes(samples: Tensor, candidates: list[int]) -> Tensor:
            """Of the entropy, by the share of each candidate [batch, candidates]."""

            def entropy(weights: dict[str, Tensor]) -> Tensor:
                logits: Tensor = functional_call(state.model, weights, (samples,))
                log = logits[:, among].float().log_softmax(1)
                return -(log.exp() * log).sum(1)

            own = [masked[task] for task in candidates]
            mixed = {n: torch.stack([each[n] for each in own]).mean(0) for n in own[0]}
            return torch.stack([jvp(entropy, (mixed,), (each,))[1] for each in own], 1)

        candidates = list(range(tasks))
        if self.options.infer == "halves":
            return halved(slopes, x, candidates)
        return slopes(x, candidates).argmin(1)

    def _masked(self, state: TrainState, task: int) -> dict[str, Tensor]:
        """Sparse weights of a task, of the present one if it is not done."""
        vault = self.vault
        if task >= len(vault):
            return {name: state.masks.shown(name) for name in state.masks}
        return {name: vault.store[name] * vault.mask(task, name) for name in state.masks}

    def bytes_of(self) -> dict[str, int]:
        """Bytes of all that answers for the tasks; constant weights are made from a seed."""
        found = self.vault.bytes
        return found | {"weights": _SEED_BYTES} if self.options.weights == "constant" else found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """With the values that constant weights are held at."""
        super().load_state_dict(state)
        self._fix(self._state)


def halved(
    slopes: Callable[[Tensor, list[int]], Tensor], x: Tensor, candidates: list[int]
) -> Tensor:
    """The candidate that is left for each sample when the worse half of them goes, and so on.

    Args:
        slopes: of samples and candidates, what is to be low [batch, candidates].
        x: samples (batch, ...).
        candidates: at least one number, ascending; of an odd number the larger half stays, of equal
            ones the lower.

    Returns:
        int64 [batch].
    """
    found = torch.full((len(x),), candidates[0], device=x.device)
    if len(candidates) == 1:
        return found
    order = slopes(x, candidates).argsort(dim=1, stable=True)[:, : -(-len(candidates) // 2)]
    kept, group = torch.unique(order.sort(1).values, dim=0, return_inverse=True)
    for each, places in enumerate(kept.tolist()):  # samples whose candidates are the same
        mine = group == each
        found[mine] = halved(slopes, x[mine], [candidates[place] for place in places])
    return found


def _fan_in(weight: Tensor) -> int:
    return weight[0].numel()


def _drawn(state: TrainState) -> dict[str, Tensor]:
    """Scores as linear layers draw their weights."""
    found = {}
    for name, parameter in state.masks.parameters.items():
        uniform = 2.0 * torch.rand(parameter.shape, generator=state.generator) - 1.0
        found[name] = (uniform / math.sqrt(_fan_in(parameter))).to(parameter)
    return found
