"""The method engine: a method put together from parts, with no name of any method in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsebench.errors import UserError
from sparsebench.sparsity import registry, scores, updates
from sparsebench.sparsity.distributions import allocate
from sparsebench.sparsity.masks import pack, unpack
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.methods.imp import Rewinding
from sparsebench.sparsity.scores import Layer, needs_of
from sparsebench.sparsity.spec import DistributionSpec, MethodSpec, StructureSpec
from sparsebench.sparsity.topk import compress, count, positions
from sparsebench.sparsity.window import Window
from sparsebench.sparsity.window import updates as ever_updates


class Composed:
    """A method as a combination of parts: distribution, scores, schedules, scope, structure.

    At an update the number of connections first follows the sparsity schedule (``prune``
    decides which stay), then a fraction of them is dropped and as many are grown. Counts
    are exact; of equal scores the lower index is kept.
    """

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
        self.storage = spec.storage
        self.sparsity = sparsity if spec.sparse and not spec.shrink else 0.0
        self.distribution = distribution or DistributionSpec()
        self._find_parts(spec, structure or StructureSpec())
        self._rewinding = Rewinding(spec.rewind, spec.ticket) if spec.rewind != "none" else None
        self._forget()

    def _find_parts(self, spec: MethodSpec, structure: StructureSpec) -> None:
        find = registry.find
        self.structure = find(structure.name, registry.STRUCTURES, "structure.name")()
        self._prune = find(spec.prune, registry.SCORES, "method.prune")
        self._initial = (
            self._prune
            if spec.initial == "dense"  # a dense network's weights decide, if it starts sparser
            else find(spec.initial, registry.INITIAL, "method.initial")
        )
        self._drop = spec.drop and find(spec.drop, registry.SCORES, "method.drop")
        self._grow = spec.grow and find(spec.grow, registry.GROWERS, "method.grow")
        self._share = spec.redistribute and find(
            spec.redistribute, registry.SHARES, "method.redistribute"
        )
        parts = [p for p in (self._prune, self._drop, self._grow, self._share) if p]
        self.needs = frozenset().union(*(needs_of(part) for part in parts))
        self._check_parts(spec)

    def _check_parts(self, spec: MethodSpec) -> None:
        if bool(spec.drop) != bool(spec.grow):
            raise UserError(
                f"method.drop={spec.drop} method.grow={spec.grow}: the one needs the other"
            )
        if spec.redistribute and not spec.drop:
            raise UserError(f"method.redistribute={spec.redistribute}: it needs a method.drop")

    def _forget(self) -> None:
        """Nothing seen yet: no momentum, no gradient, no topology."""
        self._momentum: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}
        self._explored: dict[str, Tensor] = {}
        self._fault: str | None = None  # name of a weight whose gradient is not finite
        self._window: Window | None = None
        if self._rewinding:
            self._rewinding.kept = {}

    # --- the hooks of a method -----------------------------------------------------------

    def start(self, state: TrainState) -> None:
        """Masks at initialisation: exact counts by the distribution, placed by ``initial``."""
        self._forget()
        self._window = Window.of(self.spec, state.total_steps, state.steps_per_epoch)
        target = self._target(0)
        if target > 0.0:
            self._place(state, target)
        self._explore(state)
        self._rewind(state)

    @torch.no_grad()
    def _place(self, state: TrainState, target: float) -> None:
        if missing := needs_of(self._initial):
            raise UserError(
                f"method.initial={self.spec.initial}: there is no {', '.join(sorted(missing))} "
                "before the first step"
            )
        started_dense = self.spec.initial == "dense"
        counts = (self._wanted if started_dense else self._counts)(state, target)
        layers = self._layers(state)
        free = {name: torch.ones_like(v.weight, dtype=torch.bool) for name, v in layers.items()}
        units = updates.best(layers, free, self._initial, counts, self.structure)
        for name, layer in layers.items():
            elements = self.structure.elements(units[name])
            mask = torch.zeros_like(layer.weight, dtype=torch.bool).index_fill(0, elements, True)
            state.masks.set(name, mask)

    def wants_dense_gradient(self, state: TrainState) -> bool:
        """True at updates that score by the gradient, and always where momentum is kept."""
        if "momentum" in self.needs and self._in_window(state.step):
            return True
        return "gradient" in self.needs and self._is_update(state.step + 1)

    @torch.no_grad()
    def after_backward(self, state: TrainState) -> bool:
        """Keep the dense gradients that this iteration's update will look at."""
        due = self._is_update(state.step + 1)
        if not due and not self.wants_dense_gradient(state):
            return False
        gradients = {
            name: torch.zeros_like(p) if p.grad is None else p.grad.detach()
            for name, p in state.masks.parameters.items()
        }
        self._fault = next((n for n, g in gradients.items() if not _finite(g)), None)
        if "momentum" in self.needs and not self._fault and self._in_window(state.step):
            self._accumulate(gradients)
        if due and "gradient" in self.needs:
            self._gradients = {name: g.clone() for name, g in gradients.items()}
        return due and self.spec.when == "replace"

    def _accumulate(self, gradients: Mapping[str, Tensor]) -> None:
        for name, gradient in gradients.items():
            kept = self._momentum.get(name)
            kept = torch.zeros_like(gradient) if kept is None else kept.to(gradient.device)
            self._momentum[name] = kept.mul_(self.spec.momentum).add_(gradient)

    @torch.no_grad()
    def after_step(self, state: TrainState) -> None:
        """Update the masks if it is time."""
        if not self._is_update(state.step):
            self._rewind(state)
            return
        if self._fault:
            state.notes.append(
                f"update at step {state.step} left out: "
                f"the gradient of '{self._fault}' is not finite"
            )
        else:
            self._retarget(state)
            self._exchange(state)
            self._explore(state)
            self._rewind(state)
        self._gradients = {}

    def loss(self, state: TrainState) -> Tensor | None:
        """No extra term."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Momentum and explored positions, as far as a part needs them."""
        rewinding = {"rewinding": dict(self._rewinding.kept)} if self._rewinding else {}
        return {
            "momentum": dict(self._momentum),
            "explored": {name: pack(mask) for name, mask in self._explored.items()},
            **rewinding,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave (after :meth:`start`)."""
        self._momentum = {name: tensor.clone() for name, tensor in state["momentum"].items()}
        for name, bits in state["explored"].items():
            before = self._explored[name]
            self._explored[name] = unpack(bits, before.shape).to(before.device)
        if self._rewinding:
            self._rewinding.kept = {n: t.clone() for n, t in state["rewinding"].items()}

    def rounds(self, total_steps: int, steps_per_epoch: int) -> Window | None:
        """The rounds that the learning-rate schedule follows; none unless they are rewound."""
        if not self._rewinding or self.sparsity == 0.0:
            return None
        return Window.of(self.spec, total_steps, steps_per_epoch)

    # --- the two halves of an update -------------------------------------------------------

    def _retarget(self, state: TrainState) -> None:
        """Bring the number of connections to the schedule's: prune, or fill up."""
        if self.spec.sparsity_schedule == "constant":
            return
        target, current = self._target(state.step), state.masks.nonzeros
        wanted = self._wanted(state, target)
        present = self._present(state)
        if state.masks.storage != "zeroed":  # absent weights have values, and may return
            every = {name: torch.ones_like(units) for name, units in present.items()}
            self._keep(state, present, every, wanted)
            return
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
        kept = updates.best(self._layers(state), among, self._prune, wanted, self.structure)
        for name, units in kept.items():
            chosen = torch.zeros_like(present[name]).index_fill_(0, units, True)
            dropped, grown = present[name] & ~chosen, chosen & ~present[name]
            self._move(state, name, positions(dropped), positions(grown))

    def _fill(
        self, state: TrainState, present: Mapping[str, Tensor], wanted: updates.Counts
    ) -> None:
        """Add connections, all new."""
        current = state.masks.nonzeros
        amounts: updates.Counts
        if isinstance(wanted, int):
            amounts = wanted - sum(current.values())
        else:
            amounts = {name: wanted[name] - current[name] for name in current}
        free = {name: ~units for name, units in present.items()}
        score = self._grow or scores.random
        grown = updates.best(self._layers(state), free, score, amounts, self.structure)
        for name, units in grown.items():
            self._move(state, name, units[:0], units)

    def _exchange(self, state: TrainState) -> None:
        """Drop a fraction of the connections and grow as many."""
        assert self._window is not None
        fraction = self._window.drop_fraction(self.spec, state.step)
        if not self._drop or not self._grow or fraction <= 0.0 or state.masks.sparsity == 0.0:
            return
        layers, present = self._layers(state), self._present(state)
        counts = self._drop_counts(present, fraction)
        dropped = updates.worst(layers, present, self._drop, counts, self.structure)
        kept = {n: units.index_fill(0, dropped[n], False) for n, units in present.items()}
        free = {n: ~(present[n] if self.spec.regrow == "never" else kept[n]) for n in layers}
        amounts = {n: units.numel() for n, units in dropped.items()}
        shares = self._share(layers, present, kept) if self._share else amounts
        counts = self._grow_counts(amounts, shares, free)
        grown = updates.best(layers, free, self._grow, counts, self.structure)
        for name in layers:
            self._swap(state, name, present[name], dropped[name], grown[name])

    def _rewind(self, state: TrainState) -> None:
        """Keep the state at the beginning of the window, and go back to it at each update."""
        if not self._rewinding or self.sparsity == 0.0:
            return
        assert self._window is not None
        if state.step == self._window.begin:
            self._rewinding.keep(state)
        elif self._is_update(state.step):
            self._rewinding.back(state, last=state.step == self._window.last)

    def _drop_counts(self, present: Mapping[str, Tensor], fraction: float) -> updates.Counts:
        numbers = {name: count(units) for name, units in present.items()}
        room = {name: units.numel() - numbers[name] for name, units in present.items()}
        if self.spec.drop_scope == "global":
            return self._drop_count(fraction, sum(numbers.values()), sum(room.values()))
        return {n: self._drop_count(fraction, numbers[n], room[n]) for n in numbers}

    def _drop_count(self, fraction: float, number: int, room: int) -> int:
        exact = fraction * number
        if not math.isclose(exact, round(exact), rel_tol=1e-12):  # 0.3 * 10 is a whole number
            exact = math.ceil(exact) if self.spec.drop_rounding == "ceil" else math.floor(exact)
        return min(round(exact), room) if self.spec.regrow == "never" else round(exact)

    def _grow_counts(
        self,
        amounts: Mapping[str, int],
        shares: Mapping[str, float],
        free: Mapping[str, Tensor],
    ) -> updates.Counts:
        total = sum(amounts.values())
        if self.spec.grow_scope == "global":
            return total
        if not self._share and self.spec.drop_scope == "layer":
            return amounts
        # by share, or after a drop that may have taken more of a layer than it has room for
        room = {name: count(mask) for name, mask in free.items()}
        return updates.share_out(total, shares, room)

    def _swap(
        self, state: TrainState, name: str, present: Tensor, dropped: Tensor, grown: Tensor
    ) -> None:
        """Apply one layer's exchange; a unit dropped and regrown at once keeps its value."""
        if self.spec.regrow == "keep":
            chosen = torch.zeros_like(present).index_fill(0, grown, True)
            dropped = compress(dropped, ~chosen.index_select(0, dropped))
            grown = compress(grown, ~present.index_select(0, grown))
        self._move(state, name, dropped, grown)

    def _move(self, state: TrainState, name: str, dropped: Tensor, grown: Tensor) -> None:
        elements = self.structure.elements
        state.masks.move(name, elements(dropped), elements(grown), state.optimizers)

    # --- what the parts look at -----------------------------------------------------------

    def _layers(self, state: TrainState) -> dict[str, Layer]:
        def flat(tensors: Mapping[str, Tensor], name: str) -> Tensor | None:
            return tensors[name].reshape(-1) if name in tensors else None

        return {
            name: Layer(
                weight=parameter.detach().reshape(-1),
                generator=state.generator,
                gradient=flat(self._gradients, name),
                momentum=flat(self._momentum, name),
                explored=self._explored.get(name),
            )
            for name, parameter in state.masks.parameters.items()
        }

    def _present(self, state: TrainState) -> dict[str, Tensor]:
        """For each layer, which units exist."""
        return {name: self.structure.units(mask) for name, mask in state.masks.items()}

    def _explore(self, state: TrainState) -> None:
        if "explored" not in self.needs:
            return
        for name, mask in state.masks.items():
            flat = mask.reshape(-1)
            self._explored[name] = self._explored.get(name, torch.zeros_like(flat)) | flat

    def _wanted(self, state: TrainState, sparsity: float) -> updates.Counts:
        """Number of connections where ``prune`` decides: of each layer, or over all."""
        if self.spec.scope == "global":
            return round((1.0 - sparsity) * sum(state.masks.sizes.values()))
        return self._counts(state, sparsity)

    def _counts(self, state: TrainState, sparsity: float) -> dict[str, int]:
        """Exact number of connections of each layer at this sparsity."""
        shapes = {name: p.shape for name, p in state.masks.parameters.items()}
        if sparsity == 0.0:
            return {name: shape.numel() for name, shape in shapes.items()}
        d = self.distribution
        return allocate(
            shapes, 1.0 - sparsity, name=d.name, power=d.power, first_dense=d.first_dense,
            last_dense=d.last_dense, fc_density=d.fc_density, compat=d.compat, fixed=d.fixed,
        )  # fmt: skip

    def _target(self, step: int) -> float:
        if self.sparsity == 0.0:
            return 0.0
        assert self._window is not None
        return self._window.sparsity(self.spec, self.sparsity, step)

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
