"""The method engine: a method put together from parts, with no name of any method in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparsebench.errors import UserError
from sparsebench.sparsity import registry, scores, updates
from sparsebench.sparsity.collapse import look_for_collapse
from sparsebench.sparsity.distributions import allocate
from sparsebench.sparsity.examples import NoExamples
from sparsebench.sparsity.exchange import drop, drop_counts, grow_counts, moves, without
from sparsebench.sparsity.fields import read_options
from sparsebench.sparsity.initial import place
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.methods.imp import Rewinding
from sparsebench.sparsity.observers import Observer
from sparsebench.sparsity.scores import Layer, needs_of
from sparsebench.sparsity.spec import DistributionSpec, MethodSpec, StructureSpec
from sparsebench.sparsity.topk import count, positions
from sparsebench.sparsity.window import Window
from sparsebench.sparsity.window import updates as ever_updates


@dataclass(frozen=True)
class NoOptions:
    """Methods of parts alone have no options."""


class Composed:
    """A method as a combination of parts: distribution, scores, schedules, scope, structure.

    At an update the number of connections first follows the sparsity schedule (``prune``
    decides which stay), then a fraction of them is dropped and as many are grown. Counts
    are exact; of equal scores the lower index is kept.
    """

    #: Dataclass of the options that a class built on this one takes, with rules as in ``spec``.
    Options: ClassVar[type] = NoOptions

    def __init__(
        self,
        spec: MethodSpec,
        sparsity: float,
        distribution: DistributionSpec | None = None,
        structure: StructureSpec | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            spec: the parts by name.
            sparsity: final share of zeros over the selected weights, in [0, 1).
            distribution: how much each layer keeps.
            structure: which patterns of zeros are allowed.

        Raises:
            UserError: a part that does not exist.
        """
        self.spec = spec
        self.options: Any = read_options(self.Options, spec.options, "method.options")
        self.storage = spec.storage
        self.sparsity = sparsity if spec.sparse and not spec.shrink else 0.0
        self._find_parts(spec, structure or StructureSpec())
        self.distribution = self.structure.distribution(distribution or DistributionSpec())
        self._rewinding = Rewinding(spec.rewind, spec.ticket) if spec.rewind != "none" else None
        self._window: Window | None = None
        self._fault: str | None = None  # name of a weight whose gradient is not finite

    def _find_parts(self, spec: MethodSpec, structure: StructureSpec) -> None:
        find = registry.find
        self.structure = find(structure.name, registry.STRUCTURES, "structure.name")(structure)
        self.pattern = structure
        self._prune = find(spec.prune, registry.SCORES, "method.prune")
        self.first = (
            self._prune
            if spec.initial == "dense"  # a dense network's weights decide, if it starts sparser
            else find(spec.initial, registry.INITIAL, "method.initial")
        )
        self._drop = spec.drop and find(spec.drop, registry.SCORES, "method.drop")
        self._grow = spec.grow and find(spec.grow, registry.GROWERS, "method.grow")
        self._share = spec.redistribute and find(
            spec.redistribute, registry.SHARES, "method.redistribute"
        )
        self._also = spec.also and find(spec.also, registry.SCORES, "method.also")
        self._grown = spec.grown != "zero" and find(spec.grown, registry.GROWN, "method.grown")
        every = (self._prune, self._drop, self._grow, self._share, self._also, self._grown)
        parts = [part for part in every if part]
        self.needs = frozenset().union(*(needs_of(part) for part in parts))
        self.observers: dict[str, Observer] = {
            name: find(name, registry.OBSERVERS, "needs")(spec)
            for name in sorted(self.needs | needs_of(self.first))
        }
        self._check_parts(spec)

    def _check_parts(self, spec: MethodSpec) -> None:
        if bool(spec.drop) != bool(spec.grow):
            raise UserError(
                f"method.drop={spec.drop} method.grow={spec.grow}: the one needs the other"
            )
        if spec.redistribute and not spec.drop:
            raise UserError(f"method.redistribute={spec.redistribute}: it needs a method.drop")
        self.structure.suits(spec)

    # --- the hooks of a method -----------------------------------------------------------

    def start(self, state: TrainState) -> None:
        """Masks at initialisation: exact counts by the distribution, placed by ``initial``."""
        if self._rewinding:
            self._rewinding.kept = {}
        self._window = self.window(state.total_steps, state.steps_per_epoch)
        for observer in self.observers.values():
            observer.begin(state)
        if self.sparsity > 0.0:
            shapes = {n: tuple(p.shape) for n, p in state.masks.parameters.items()}
            self.structure.check(shapes, self.sparsity)
            if said := self.structure.note(shapes):
                state.notes.append(said)
        target = self._target(0)
        if target > 0.0 and not state.resuming:
            self._place(state, target)
        self._changed(state)
        self._rewind(state)

    def _place(self, state: TrainState, target: float) -> None:
        spec = self.spec
        together = spec.scope if spec.initial == "dense" else spec.initial_scope
        try:
            place(
                state, self.first,
                lambda sparsity: self._wanted(state, sparsity, together),
                target,
                lambda: self._layers(state, needs_of(self.first)),
                self.structure,
                rounds=spec.initial_rounds, regrow=spec.initial_regrow,
                shuffle=spec.initial_shuffle,
            )  # fmt: skip
        except NoExamples as error:
            raise UserError(
                f"method.initial={spec.initial}: it looks at training data before the first step, "
                "and gets none; give Session or Sparsify examples=Examples(batches, loss)"
            ) from error

    def wants_dense_gradient(self, state: TrainState) -> bool:
        """True at updates that score by the gradient, and always where absent weights learn."""
        masks = state.masks
        shadow = masks.storage == "shadow" and not masks.reach.factors and self.sparsity > 0.0
        return shadow or self._observes(state)

    def _observes(self, state: TrainState) -> bool:
        when = {self.observers[name].dense_gradient for name in self.needs}
        if "always" in when and self._in_window(state.step):
            return True
        return "update" in when and self._is_update(state.step + 1)

    @torch.no_grad()
    def after_backward(self, state: TrainState) -> bool:
        """Show the dense gradients to the observers that want them."""
        due = self._is_update(state.step + 1)
        if self.spec.absent_decay and state.masks.storage == "shadow":
            state.masks.decay_absent(self.spec.absent_decay)
        if not due and not self._observes(state):
            return False
        gradients = {
            name: torch.zeros_like(p) if p.grad is None else p.grad.detach()
            for name, p in state.masks.parameters.items()
        }
        self._fault = next((n for n, g in gradients.items() if not _finite(g)), None)
        for observer in self._active(state):
            if observer.dense_gradient == "update" or not self._fault:
                observer.see(state, gradients, due)
        return due and self.spec.when == "replace"

    def _active(self, state: TrainState) -> list[Observer]:
        """Observers of what happens in the update window."""
        return [self.observers[name] for name in self.needs] if self._in_window(state.step) else []

    @torch.no_grad()
    def after_step(self, state: TrainState) -> None:
        """Update the masks if it is time."""
        self.structure.settle(state)
        for observer in self._active(state):
            observer.moved(state)
        if not self._is_update(state.step):
            self._rewind(state)
            return
        if self._fault:
            state.notes.append(
                f"update at step {state.step} left out: "
                f"the gradient of '{self._fault}' is not finite"
            )
        else:
            self.update(state)
            self._rewind(state)
        self._changed(state)

    def update(self, state: TrainState) -> None:
        """One update of the masks: follow the sparsity schedule, then explore."""
        self._retarget(state)
        self._exchange(state)

    def _changed(self, state: TrainState) -> None:
        self.structure.settle(state)
        for observer in self.observers.values():
            observer.changed(state)
        look_for_collapse(state, self.spec.collapse)

    def state_dict(self) -> dict[str, Any]:
        """What the observers gathered, and the state to rewind to."""
        rewinding = {"rewinding": dict(self._rewinding.kept)} if self._rewinding else {}
        seen = {name: observer.state_dict() for name, observer in self.observers.items()}
        return {"observers": seen, **rewinding}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave (after :meth:`start`)."""
        for name, observer in self.observers.items():
            observer.load_state_dict(state["observers"][name])
        if self._rewinding:
            self._rewinding.kept = {n: t.clone() for n, t in state["rewinding"].items()}

    def rounds(self, total_steps: int, steps_per_epoch: int) -> Window | None:
        """The rounds that the learning-rate schedule follows; none unless they are rewound."""
        if not self._rewinding or self.sparsity == 0.0:
            return None
        return self.window(total_steps, steps_per_epoch)

    def window(self, total_steps: int, steps_per_epoch: int) -> Window:
        """When masks are updated, and the sparsity of each time; costs are forecast from it."""
        return Window.of(self.spec, total_steps, steps_per_epoch)

    # --- the two halves of an update -------------------------------------------------------

    def _retarget(self, state: TrainState, target: float | None = None) -> None:
        """Bring the number of connections to a sparsity, else the schedule's: prune, or fill up."""
        if target is None:
            if self.spec.sparsity_schedule == "constant" and state.masks.storage == "zeroed":
                return
            target = self._target(state.step)
        wanted = self._wanted(state, target, self.spec.scope)
        present = self.structure.present(state.masks)
        if state.masks.storage != "zeroed":  # absent weights have values, and may return
            every = {name: torch.ones_like(units) for name, units in present.items()}
            self._keep(state, present, every, wanted)
            return
        current = {name: count(units) for name, units in present.items()}
        total = wanted if isinstance(wanted, int) else sum(wanted.values())
        if not isinstance(wanted, int):
            wanted = updates.one_way(wanted, current)
        if total < sum(current.values()):
            self._keep(state, present, present, wanted)
        elif total > sum(current.values()):
            self._fill(state, present, wanted)

    def _keep(
        self,
        state: TrainState,
        present: Mapping[str, Tensor],
        among: Mapping[str, Tensor],
        wanted: updates.Counts,
    ) -> None:
        """Let each layer consist of the best of some units only."""
        layers = self._layers(state)
        if self._also:
            pair = (self._prune, self._also)
            among = without(self.spec, layers, among, pair, wanted, self.structure)
        kept = updates.best(layers, among, self._prune, wanted, self.structure)
        if state.masks.storage == "shadow":  # all values live on: the masks are all that changes
            for name, units in kept.items():
                shape = tuple(state.masks.parameters[name].shape)
                state.masks.keep(name, self.structure.elements(units, shape))
            return
        for name, units in kept.items():
            chosen = torch.zeros_like(present[name]).index_fill_(0, units, True)
            dropped, grown = present[name] & ~chosen, chosen & ~present[name]
            self._move(state, name, positions(dropped), positions(grown), None)

    def _fill(
        self, state: TrainState, present: Mapping[str, Tensor], wanted: updates.Counts
    ) -> None:
        """Add connections, all new."""
        current = {name: count(units) for name, units in present.items()}
        amounts: updates.Counts
        if isinstance(wanted, int):
            amounts = wanted - sum(current.values())
        else:
            amounts = {name: wanted[name] - current[name] for name in current}
        free = {name: ~units for name, units in present.items()}
        score = self._grow or scores.random
        layers = self._layers(state)
        grown = updates.best(layers, free, score, amounts, self.structure, present)
        for name, units in grown.items():
            self._move(state, name, units[:0], units, layers[name])

    def _exchange(self, state: TrainState) -> None:
        """Drop a fraction of the connections and grow as many."""
        assert self._window is not None
        fraction = self._window.drop_fraction(self.spec, state.step)
        if not self._drop or not self._grow or fraction <= 0 or state.masks.sparsity == 0:
            return
        layers, present = self._layers(state), self.structure.present(state.masks)
        dropped = self._dropped(layers, present, fraction)
        kept = {n: units.index_fill(0, dropped[n], False) for n, units in present.items()}
        there = present if self.spec.regrow == "never" else kept
        free = {n: self.growable(state, n, ~there[n]) for n in layers}
        amounts = {n: units.numel() for n, units in dropped.items()}
        shares = self._share(layers, present, kept) if self._share else None
        counts = grow_counts(self.spec, amounts, shares, free)
        grown = updates.best(layers, free, self._grow, counts, self.structure, kept)
        for name in layers:
            gone, new = moves(self.spec, present[name], dropped[name], grown[name])
            self._move(state, name, gone, new, layers[name])

    def growable(self, state: TrainState, name: str, free: Tensor) -> Tensor:
        """Of the free units of a layer those that an exchange may grow: all."""
        return free

    def _dropped(
        self, layers: Mapping[str, Layer], present: Mapping[str, Tensor], fraction: float
    ) -> dict[str, Tensor]:
        """Of each layer, flat positions of the units that an exchange drops, ascending."""
        assert self._drop
        counts, pair = drop_counts(self.spec, present, fraction), (self._drop, self._also or None)
        return drop(self.spec, layers, present, pair, counts, self.structure)

    def _rewind(self, state: TrainState) -> None:
        """Keep the state at the beginning of the window, and go back to it at each update."""
        if not self._rewinding or self.sparsity == 0.0:
            return
        assert self._window is not None
        if state.step == self._window.begin:
            self._rewinding.keep(state)
        elif self._is_update(state.step):
            self._rewinding.back(state, last=state.step == self._window.last)

    def _move(
        self, state: TrainState, name: str, dropped: Tensor, grown: Tensor, layer: Layer | None
    ) -> None:
        shape = tuple(state.masks.parameters[name].shape)
        gone = self.structure.elements(dropped, shape)
        new = self.structure.elements(grown, shape)
        values = self._grown(layer, new) * self.spec.grown_scale if self._grown and layer else None
        state.masks.move(name, gone, new, state.optimizers, values)

    # --- what the parts look at -----------------------------------------------------------

    def _layers(self, state: TrainState, needs: frozenset[str] | None = None) -> dict[str, Layer]:
        wanted = self.needs if needs is None else needs
        seen = {what: self.observers[what].values(state) for what in sorted(wanted)}
        return {
            name: Layer(
                weight=parameter.detach().reshape(-1),
                generator=state.generator,
                seen={what: found[name].reshape(-1) for what, found in seen.items()},
                name=name,
                shape=tuple(parameter.shape),
                factor=state.masks.factor(name),
            )
            for name, parameter in state.masks.parameters.items()
        }

    def _wanted(self, state: TrainState, sparsity: float, scope: str) -> updates.Counts:
        """Number of units to keep: of each layer, or over all."""
        units = self._counts(state, 0.0 if scope == "global" else sparsity)
        return self.structure.together(units, sparsity) if scope == "global" else units

    def _counts(self, state: TrainState, sparsity: float) -> dict[str, int]:
        """Exact number of units of each layer at this sparsity."""
        shapes = {name: p.shape for name, p in state.masks.parameters.items()}
        return dict(self.structure.counts(shapes, self._weights(state, sparsity)))

    def _weights(self, state: TrainState, sparsity: float) -> dict[str, int]:
        """Weights that each layer may keep at this sparsity, whatever the structure."""
        if sparsity == 0.0:
            return state.masks.sizes
        shapes = {name: p.shape for name, p in state.masks.parameters.items()}
        return allocate(shapes, 1.0 - sparsity, **asdict(self.distribution))

    def _target(self, step: int) -> float:
        assert self._window is not None
        return self._window.sparsity(self.spec, self.sparsity, step) if self.sparsity else 0.0

    def _is_update(self, step: int) -> bool:
        assert self._window is not None, "start() comes first"
        return self.sparsity > 0 and ever_updates(self.spec) and self._window.is_update(step)

    def _in_window(self, step: int) -> bool:
        assert self._window is not None
        return self.sparsity > 0 and step < self._window.end


def _finite(tensor: Tensor) -> bool:
    """Whether all entries are finite: one cheap sum, and only if that is not, a look at each."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def rounds_of(method: object, total_steps: int, steps_per_epoch: int) -> Window | None:
    """The rounds of any method; none unless it has some (see :meth:`Composed.rounds`)."""
    found = getattr(method, "rounds", None)
    return found(total_steps, steps_per_epoch) if found else None
