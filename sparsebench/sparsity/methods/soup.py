"""Sparse Model Soups: prune, retrain several copies on one mask, average them, and again.

Source: Zimmer et al., arXiv 2306.16788; code github.com/ZIB-IOL/SMS. From a network trained densely
until ``begin``, each of n phases prunes to the next density ``(1 - s)^(k / n)`` (by ``prune``, over
all layers), trains ``members`` copies from the same point with the same mask for ``every`` steps
each, and takes the mean of their weights and buffers: a soup has exactly the zeros of its members.
Running statistics of batch normalisation mean nothing after averaging, so they are taken anew over
training batches. What is left after the last phase trains the soup on.

One run trains the members one after the other, so its cost is that of all of them, and so is the
cost that is counted. Members differ by their batches: each goes on in the order of the data (the
code can also vary weight decay, rate or length). Each phase of the learning rate belongs to a
member, and the optimizer starts afresh: with ``schedule=linear schedule.warmup=10%`` it is the
code's retraining schedule LLR. ``members: 1`` is the paper's IMP, and with m times ``every`` it is
the IMP of equal cost.

``combine: best`` keeps one member in place of the mean: that of the lowest mean loss on
``batches`` training batches, since a method never sees validation data. ``combine: greedy`` is the
greedy soup (Wortsman et al. 2022, arXiv 2203.05482, recipe 1; the code has it too): from the best
member to the worst, each is taken in if the mean with it has no higher loss. Both papers choose by
held-out accuracy, and this by loss on ``batches`` training batches, the same for all. Here counts
are exact, and batch statistics are those of ``batches`` training batches (the code's, by default,
of all of them).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparsebench.errors import UserError, bad_value
from sparsebench.sparsity.composed import Composed
from sparsebench.sparsity.examples import undisturbed
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.optimizer_state import forget
from sparsebench.sparsity.spec import MethodSpec
from sparsebench.sparsity.window import Window


@dataclass(frozen=True)
class Options:
    """Of a soup, beside the dials."""

    members: int = field(default=3, metadata={"least": 1, "most": 1000})
    combine: str = field(default="mean", metadata={"choices": ("mean", "greedy", "best")})
    batches: int = field(default=50, metadata={"least": 1, "most": 1_000_000})


@dataclass(frozen=True)
class Phases(Window):
    """A window of phases, each with a stretch of ``every`` steps for each member.

    Attributes:
        members: how many copies a phase trains.
    """

    members: int = 1

    @property
    def length(self) -> int:
        """Steps of a phase."""
        return self.every * self.members

    @property
    def last(self) -> int:
        """The step at which the last phase is over."""
        return self.begin + (self.end - self.begin) // self.length * self.length

    def is_update(self, step: int) -> bool:
        """At the beginning of the first phase, and where a member is done."""
        return self.begin <= step <= self.last and (step - self.begin) % self.every == 0

    def sparsity(self, spec: MethodSpec, final: float, step: int) -> float:
        """Each phase removes the same share of what is left."""
        if step < self.begin:
            return spec.initial_sparsity
        number = (self.last - self.begin) // self.length
        share = min((step - self.begin) // self.length + 1, number) / number
        return 1.0 - float((1.0 - spec.initial_sparsity) ** (1.0 - share) * (1.0 - final) ** share)

    def place(self, step: int, total_steps: int) -> tuple[int, int]:
        """Step in, and length of, the training it is of: the dense one, a member's, the rest."""
        if step < self.begin:
            return step, self.begin
        if step < self.last:
            return (step - self.begin) % self.every, self.every
        rest = total_steps - self.last
        return (step - self.last, rest) if rest else (self.every, self.every)


class Soup(Composed):
    """Prunes in phases, each of which trains copies from one point and combines them."""

    kind: ClassVar[dict[str, str]] = {"when": "after"}
    Options = Options

    def __init__(self, spec: MethodSpec, *args: Any) -> None:
        """As :class:`Composed`.

        Raises:
            UserError: parts that would give members other masks, or take them elsewhere.
        """
        super().__init__(spec, *args)
        for dial, plain in (("drop", None), ("rewind", "none"), ("storage", "zeroed")):
            if getattr(spec, dial) != plain:
                why = "the members of a soup share one mask and begin at one point"
                raise bad_value(f"method.{dial}", getattr(spec, dial), why)
        if spec.sparsity_schedule != "geometric" or spec.sparsity_end:
            raise UserError(
                f"method.sparsity_schedule={spec.sparsity_schedule}: the phases of a soup are "
                "geometric, until method.end"
            )
        self.point: dict[str, Tensor] = {}  # where the members of this phase begin
        self.pot: dict[str, Tensor] = {}  # sum of those that are done, or the best of them
        self.members: list[dict[str, Tensor]] = []  # those that are done, of a greedy soup
        self.best_loss = float("inf")

    def window(self, total_steps: int, steps_per_epoch: int) -> Phases:
        """Phases in place of single updates.

        Raises:
            UserError: not one phase fits into the window.
        """
        window = super().window(total_steps, steps_per_epoch)
        phases = Phases(**vars(window), members=self.options.members)
        if phases.last == phases.begin and self.sparsity > 0:
            raise bad_value(
                "method.every",
                self.spec.every,
                f"one phase of {phases.members} members takes {phases.length} steps, and from "
                f"method.begin to method.end there are {window.end - window.begin}",
            )
        return phases

    def rounds(self, total_steps: int, steps_per_epoch: int) -> Window | None:
        """Each member has a learning-rate schedule of its own."""
        return self.window(total_steps, steps_per_epoch) if self.sparsity > 0 else None

    def start(self, state: TrainState) -> None:
        """As :class:`Composed`; with ``begin: 0`` the first phase is here."""
        super().start(state)
        self.point, self.pot, self.members, self.best_loss = {}, {}, [], float("inf")
        if self.sparsity == 0 or state.resuming:
            return
        if self.options.combine != "mean" or (self.options.members > 1 and _norms(state.model)):
            state.data.take(state, 1)  # where there are no data, that is said before training
        if self._phases.begin == 0:
            state.masks.apply(state.optimizers)
            self._begin_phase(state)

    def after_backward(self, state: TrainState) -> bool:
        """As :class:`Composed`; a member is done whatever its last gradient was."""
        replaced = super().after_backward(state)
        self._fault = None
        return replaced

    @property
    def _phases(self) -> Phases:
        assert isinstance(self._window, Phases)
        return self._window

    def update(self, state: TrainState) -> None:
        """A member is done, and perhaps a phase."""
        done = state.step - self._phases.begin
        if done:
            self._add(state)
        if done % self._phases.length:
            _load(state.model, self.point)
        else:
            if done:
                self._serve(state)
            if state.step < self._phases.last:
                self._retarget(state)
                self._begin_phase(state)
        forget(state.optimizers)

    def _begin_phase(self, state: TrainState) -> None:
        self.point = {n: t.detach().clone() for n, t in state.model.state_dict().items()}

    def _add(self, state: TrainState) -> None:
        """Put a member into the pot."""
        now = {n: t.detach().clone() for n, t in state.model.state_dict().items()}
        if self.options.combine == "greedy":
            self.members.append(now)
        elif self.options.combine == "mean":
            self.pot = {n: t + self.pot[n].to(t.device) if self.pot else t for n, t in now.items()}
        else:
            loss = _mean_loss(state, state.data.take(state, self.options.batches))
            if not self.pot or loss < self.best_loss:
                self.pot, self.best_loss = now, loss

    def _serve(self, state: TrainState) -> None:
        """The soup takes the network's place."""
        members = self.options.members
        if self.options.combine == "greedy":
            self._choose(state)
        elif self.options.combine == "mean" and members > 1:
            _load(state.model, _shared(self.pot, members))
            refresh_norms(state, self.options.batches)
        else:
            _load(state.model, self.pot)
        self.pot, self.members, self.best_loss = {}, [], float("inf")
        state.masks.check()

    def _choose(self, state: TrainState) -> None:
        """From the best member on, take in each that does not make the mean worse."""
        taken = state.data.take(state, self.options.batches)
        losses = []
        for member in self.members:
            _load(state.model, member)
            losses.append(_mean_loss(state, taken))
        first, *others = sorted(range(len(losses)), key=losses.__getitem__)
        soup, total, chosen = self.members[first], self.members[first], 1
        least = losses[first]
        for member in (self.members[i] for i in others):
            more = {name: t + member[name].to(t.device) for name, t in total.items()}
            _load(state.model, _shared(more, chosen + 1))
            refresh_norms(state, self.options.batches)
            if (loss := _mean_loss(state, taken)) <= least:
                soup = {n: t.detach().clone() for n, t in state.model.state_dict().items()}
                total, chosen, least = more, chosen + 1, loss
        _load(state.model, soup)

    def state_dict(self) -> dict[str, Any]:
        """Where this phase began, and what is in the pot."""
        soup = {"point": dict(self.point), "pot": dict(self.pot), "best_loss": self.best_loss}
        return {**super().state_dict(), "soup": {**soup, "members": list(self.members)}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave (after :meth:`start`)."""
        super().load_state_dict(state)
        soup = state["soup"]
        self.point = {n: t.clone() for n, t in soup["point"].items()}
        self.pot = {n: t.clone() for n, t in soup["pot"].items()}
        self.members = [{n: t.clone() for n, t in m.items()} for m in soup["members"]]
        self.best_loss = float(soup["best_loss"])


def _load(model: nn.Module, kept: Mapping[str, Tensor]) -> None:
    for name, tensor in model.state_dict().items():  # tensors of the model, not copies
        tensor.copy_(kept[name])


def _shared(total: Mapping[str, Tensor], members: int) -> dict[str, Tensor]:
    """The mean, from the sum of some members."""
    return {n: t / members if t.is_floating_point() else t // members for n, t in total.items()}


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def _mean_loss(state: TrainState, taken: list[Any]) -> float:
    """Mean loss of the network, as evaluated, on training batches."""
    with undisturbed(state.model), torch.no_grad():
        state.model.eval()
        return sum(float(state.data.loss(state.model, batch)) for batch in taken) / len(taken)


@torch.no_grad()
def refresh_norms(state: TrainState, batches: int) -> None:
    """Take the running statistics of batch normalisation anew, as the mean over some batches."""
    model = state.model
    norms = _norms(model)
    if not norms:
        return
    modes = {module: module.training for module in model.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    model.eval()  # nothing but the norms may draw numbers or learn
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean
        norm.train()
    for batch in state.data.take(state, batches):
        state.data.loss(model, batch)
    for norm in norms:
        norm.momentum = momenta[norm]
    for module, training in modes.items():
        module.training = training
