"""The method engine: a method put together from parts, with no name of any method in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsebench.sparsity import registry, updates
from sparsebench.sparsity.distributions import allocate
from sparsebench.sparsity.masks import pack, unpack
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.scores import Layer, needs_of
from sparsebench.sparsity.spec import DistributionSpec, MethodSpec, StructureSpec
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
        find = registry.find
        self.spec = spec
        self.storage = spec.storage
        self.sparsity = sparsity if spec.sparse and not spec.shrink else 0.0
        self.distribution = distribution or DistributionSpec()
        named = structure or StructureSpec()
        self.structure = find(named.name, registry.STRUCTURES, "structure.name")()
        self._prune = find(spec.prune, registry.SCORES, "method.prune")
        self._drop = spec.drop and find(spec.drop, registry.SCORES, "method.drop")
        self._grow = spec.grow and find(spec.grow, registry.GROWERS, "method.grow")
        self._share = spec.redistribute and find(
            spec.redistribute, registry.SHARES, "method.redistribute"
        )
        parts = [p for p in (self._prune, self._drop, self._grow, self._share) if p]
        self._needs = frozenset().union(*(needs_of(part) for part in parts))
        self._momentum: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}
        self._explored: dict[str, Tensor] = {}
        self._window: Window | None = None

    # --- the hooks of a method -----------------------------------------------------------

    def start(self, state: TrainState) -> None:
        """Masks at initialisation: exact counts by the distribution, placed by ``initial``."""
        self._window = Window.of(self.spec, state.total_steps, state.steps_per_epoch)
        target = self._target(0)
        if target > 0.0:
            self._place(state, target)
        self._explore(state)

    def _place(self, state: TrainState, target: float) -> None:
        score = registry.find(self.spec.initial, registry.INITIAL, "method.initial")
        counts = self._counts(state, target)
        layers = self._layers(state)
        free = {name: torch.zeros_like(v.weight, dtype=torch.bool) for name, v in layers.items()}
        for name, units in updates.grow_best(layers, free, score, counts, self.structure).items():
            mask = torch.zeros(layers[name].weight.numel(), dtype=torch.bool, device=units.device)
            mask[self.structure.elements(units)] = True
            state.masks.set(name, mask)

    def wants_dense_gradient(self, state: TrainState) -> bool:
        """True at updates that score by the gradient, and always where momentum is kept."""
        if "momentum" in self._needs and self._in_window(state.step):
            return True
        return "gradient" in self._needs and self._is_update(state.step + 1)

    def after_backward(self, state: TrainState) -> bool:
        """Keep the dense gradients that this iteration's update will look at."""
        if not self.wants_dense_gradient(state):
            return self.spec.when == "replace" and self._is_update(state.step + 1)
        gradients = {
            name: p.grad.detach() for name, p in state.masks.parameters.items() if p.grad is not None
        }
        if "momentum" in self._needs:
            for name, g in gradients.items():
                kept = self._momentum.setdefault(name, torch.zeros_like(g))
                kept.mul_(self.spec.momentum).add_(g)
        if self._is_update(state.step + 1) and "gradient" in self._needs:
            self._gradients = {name: g.clone() for name, g in gradients.items()}
        return self.spec.when == "replace" and self._is_update(state.step + 1)

    @torch.no_grad()
    def after_step(self, state: TrainState) -> None:
        """Update the masks if it is time."""
        if not self._is_update(state.step):
            return
        if bad := self._not_finite(state):
            state.notes.append(f"update at step {state.step} left out: {bad} is not finite")
        else:
            self._retarget(state)
            self._exchange(state)
            self._explore(state)
        self._gradients = {}

    def loss(self, state: TrainState) -> Tensor | None:
        """No extra term."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Momentum and explored positions, as far as a part needs them."""
        return {
            "momentum": dict(self._momentum),
            "explored": {name: pack(mask) for name, mask in self._explored.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave (after :meth:`start`)."""
        self._momentum = {name: tensor.clone() for name, tensor in state["momentum"].items()}
        self._explored = {
            name: unpack(bits, torch.Size([self._explored[name].numel()]))
            for name, bits in state["explored"].items()
        }

    # --- the two halves of an update -------------------------------------------------------

    def _retarget(self, state: TrainState) -> None:
        """Bring the number of connections to the schedule's: prune, or fill up."""
        target = self._target(state.step)
        current = state.masks.nonzeros
        if self.spec.scope == "global" and self.spec.sparsity_schedule != "constant":
            total = sum(current.values())
            wanted: updates.Counts = round((1.0 - target) * sum(state.masks.sizes.values()))
            if wanted == total:
                return
        elif self.spec.sparsity_schedule != "constant":
            wanted = self._counts(state, target)
            if wanted == current:
                return
        else:
            return
        layers = self._layers(state)
        positions = self._candidates(state, layers, wanted)
        scores = {n: self.structure.score(self._prune, layers[n], p) for n, p in positions.items()}
        for name, best in updates.keep_best(scores, wanted, self.structure).items():
            self._change(state, name, positions[name][best])

    def _candidates(
        self, state: TrainState, layers: Mapping[str, Layer], wanted: updates.Counts
    ) -> dict[str, Tensor]:
        """Units that may be kept: the active ones, or all where absent ones have values."""
        current = state.masks.nonzeros
        fill = (
            wanted > sum(current.values())
            if isinstance(wanted, int)
            else any(wanted[n] > current[n] for n in current)
        )
        if fill or state.masks.storage != "zeroed":
            return {n: torch.arange(v.weight.numel()) for n, v in layers.items()}
        return {n: self.structure.units(state.masks[n]).nonzero().view(-1) for n in layers}

    def _exchange(self, state: TrainState) -> None:
        """Drop a fraction of the connections and grow as many."""
        assert self._window is not None
        fraction = self._window.drop_fraction(self.spec, state.step)
        if not self._drop or not self._grow or fraction <= 0.0 or state.masks.sparsity == 0.0:
            return
        layers = self._layers(state)
        present = {n: self.structure.units(state.masks[n]) for n in layers}
        active = {n: mask.nonzero().view(-1) for n, mask in present.items()}
        counts = self._drop_counts(active, present, fraction)
        gone = updates.drop_worst(layers, active, self._drop, counts, self.structure)
        dropped = {n: active[n][gone[n]] for n in layers}
        occupied = {n: mask.clone() for n, mask in present.items()}
        if self.spec.regrow != "never":
            for name, units in dropped.items():
                occupied[name][units] = False
        kept = {n: present[n].index_fill(0, dropped[n], False) for n in layers}
        amounts = self._grow_counts(layers, kept, occupied, dropped)
        grown = updates.grow_best(layers, occupied, self._grow, amounts, self.structure)
        for name in layers:
            self._swap(state, name, present[name], dropped[name], grown[name])

    def _drop_counts(
        self, active: Mapping[str, Tensor], present: Mapping[str, Tensor], fraction: float
    ) -> updates.Counts:
        rounding = math.ceil if self.spec.drop_rounding == "ceil" else math.floor
        counts = {}
        for name, units in active.items():
            # "- 1e-9": a product such as 0.3 * 10 must not round up past the whole number
            wanted = rounding(fraction * units.numel() + (1e-9 if rounding is math.floor else -1e-9))
            free = present[name].numel() - units.numel()
            counts[name] = min(wanted, free) if self.spec.regrow == "never" else wanted
        return sum(counts.values()) if self.spec.drop_scope == "global" else counts

    def _grow_counts(
        self,
        layers: Mapping[str, Layer],
        kept: Mapping[str, Tensor],
        occupied: Mapping[str, Tensor],
        dropped: Mapping[str, Tensor],
    ) -> updates.Counts:
        amounts = {name: units.numel() for name, units in dropped.items()}
        if self.spec.grow_scope == "global":
            return sum(amounts.values())
        room = {name: int((~mask).sum()) for name, mask in occupied.items()}
        if self._share:
            return updates.share_out(sum(amounts.values()), self._share(layers, kept), room)
        if self.spec.drop_scope == "global":  # a layer may have lost more than it has room for
            return updates.share_out(sum(amounts.values()), amounts, room)
        return amounts

    def _swap(
        self, state: TrainState, name: str, present: Tensor, dropped: Tensor, grown: Tensor
    ) -> None:
        """Apply one layer's exchange; a unit dropped and regrown at once keeps its value."""
        returning = torch.zeros_like(present)
        returning[dropped] = True
        back = returning[grown]
        if self.spec.regrow == "zero":
            self._move(state, name, dropped, grown)
            return
        leaving = returning.index_fill(0, grown, False)
        self._move(state, name, leaving.nonzero().view(-1), grown[~back])

    def _change(self, state: TrainState, name: str, units: Tensor) -> None:
        """Let a layer consist of just these units."""
        present = self.structure.units(state.masks[name])
        wanted = torch.zeros_like(present).index_fill(0, units, True)
        self._move(
            state,
            name,
            (present & ~wanted).nonzero().view(-1),
            (wanted & ~present).nonzero().view(-1),
        )

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

    def _explore(self, state: TrainState) -> None:
        if "explored" not in self._needs:
            return
        for name, mask in state.masks.items():
            flat = mask.reshape(-1)
            self._explored[name] = self._explored.get(name, torch.zeros_like(flat)) | flat

    def _not_finite(self, state: TrainState) -> str | None:
        """Name of a tensor the update would look at that holds NaN or infinity."""
        for kind, tensors in (("gradient", self._gradients), ("momentum", self._momentum)):
            for name, tensor in tensors.items():
                # the sum is one cheap pass; only if it overflows is each entry looked at
                if not tensor.sum().isfinite() and not tensor.isfinite().all():
                    return f"the {kind} of '{name}'"
        return None

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
