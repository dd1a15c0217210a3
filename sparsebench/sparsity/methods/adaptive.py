"""Choosing topology and growth anew for each task of a stream, by short trials.

The CL-with-DST paper (arXiv 2308.14831) says in its abstract that adapting the parts of sparse
training to each task is promising, and no more of it could be read; this procedure is ours. At the
beginning of a task each candidate, a pair of a distribution and a growth, trains a copy of the
network from the same weights and seed for a share of the task's steps (``options.trial``). The one
with the lowest loss on batches that no trial trained on is trained in full; nothing else is kept of
the trials. What they cost is counted in the training FLOPs, and a note says what was chosen.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import product
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import Optimizer

from sparsebench.sparsity.composed import Composed
from sparsebench.sparsity.fields import check_fields
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.methods import isolated
from sparsebench.sparsity.selector import KINDS
from sparsebench.sparsity.spec import (
    DistributionSpec,
    MethodSpec,
    SelectorSpec,
    StructureSpec,
    number,
)


def _growths() -> list[str]:
    return ["random", "unexplored", "gradient", "momentum"]


@dataclass(frozen=True)
class Options(isolated.Options):
    """What is tried, and how long."""

    growths: list[str] = field(default_factory=_growths)
    distributions: list[str] = field(default_factory=list)
    trial: float = number(0.1, "(0, 1]", "share of a task's steps that each trial takes")
    held: float = number(0.05, "(0, 1)", "batches of a trial's score, as a share of its steps")


class Adaptive(isolated.Isolated):
    """Isolation, with parts that are chosen for each task."""

    Options: ClassVar[type] = Options

    def __init__(
        self,
        spec: MethodSpec,
        sparsity: float,
        distribution: DistributionSpec | None = None,
        structure: StructureSpec | None = None,
    ) -> None:
        """Put each candidate together once, so that a wrong name is refused at once."""
        super().__init__(spec, sparsity, distribution, structure)
        own = distribution or DistributionSpec()
        pairs = product(self.options.distributions or [own.name], self.options.growths)
        self._candidates = [
            (replace(spec, grow=grow), replace(own, name=name)) for name, grow in pairs
        ]
        for candidate, shares in self._candidates:
            check_fields(shares, "distribution")
            isolated.Isolated(_plain(candidate), sparsity, shares, structure)

    def begin_task(self, state: TrainState, task: int) -> None:
        """Try the candidates, and begin with the best."""
        scores = self._try_all(state) if len(self._candidates) > 1 else [0.0]
        self.chosen = scores.index(min(scores))
        spec, distribution = self._candidates[self.chosen]
        state.notes.append(
            f"task {task}: {distribution.name} with growth by {spec.grow} was chosen"
        )
        self._adopt(state)
        self._begin(state)

    def _adopt(self, state: TrainState) -> None:
        """Become the candidate that was chosen; the vault stays."""
        spec, distribution = self._candidates[self.chosen]
        Composed.__init__(self, spec, self.sparsity, distribution, self.pattern)
        self._window = self.window(state.total_steps, state.steps_per_epoch)
        for observer in self.observers.values():
            observer.begin(state)

    def _try_all(self, state: TrainState) -> list[float]:
        steps = max(round(self.options.trial * state.total_steps), 1)
        held = max(round(self.options.held * steps), 1)
        batches = state.data.take(state, steps + held)
        seed = int(torch.randint(2**62, (), generator=state.generator))
        samples = sum(len(batch[0]) for batch in batches[:steps])
        state.looked_at += len(self._candidates) * samples
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            return [
                self._try(state, candidate, batches, held, seed) for candidate in self._candidates
            ]

    def _try(
        self,
        state: TrainState,
        candidate: tuple[MethodSpec, DistributionSpec],
        batches: list[Any],
        held: int,
        seed: int,
    ) -> float:
        """Loss of one candidate on batches held back, after a short training of a copy."""
        from sparsebench.sparsity.session import Session  # a session needs methods

        torch.manual_seed(seed)
        model = copy.deepcopy(state.model)
        method = isolated.Isolated(_plain(candidate[0]), self.sparsity, candidate[1], self.pattern)
        optimizers = [_same(optimizer, state.model, model) for optimizer in state.optimizers]
        session = Session(
            method, model, optimizers, total_steps=state.total_steps,
            steps_per_epoch=state.steps_per_epoch, seed=seed,
            selector=SelectorSpec(kinds=list(KINDS), include=list(state.masks)),
            examples=state.data,
        )  # fmt: skip
        method.vault.load_state_dict(self.vault.state_dict())
        method._begin(session.state)
        model.train()
        for batch in batches[:-held]:
            session.before_forward()
            torch.autograd.backward(state.data.loss(model, batch))
            session.after_backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            session.after_step()
        session.before_forward()
        model.eval()
        with torch.no_grad():
            return float(sum(state.data.loss(model, batch) for batch in batches[-held:])) / held

    def state_dict(self) -> dict[str, Any]:
        """With what was chosen."""
        return {**super().state_dict(), "chosen": getattr(self, "chosen", -1)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become it again."""
        if (chosen := int(state["chosen"])) >= 0:
            self.chosen = chosen
            self._adopt(self._state)
        super().load_state_dict(state)


def _plain(spec: MethodSpec) -> MethodSpec:
    """A candidate without the options that only the choice needs."""
    own = {f.name for f in fields(isolated.Options)}
    return replace(spec, options={k: v for k, v in spec.options.items() if k in own})


def _same(optimizer: Optimizer, model: nn.Module, other: nn.Module) -> Optimizer:
    """An optimizer like another that has taken no step, over the same weights of a copy."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = [
        {
            **{k: v for k, v in group.items() if k != "initial_lr"},
            "lr": group.get("initial_lr", group["lr"]),
            "params": [other.get_parameter(names[p]) for p in group["params"]],
        }
        for group in optimizer.param_groups
    ]
    kind: Any = type(optimizer)
    found: Optimizer = kind(groups)
    return found
