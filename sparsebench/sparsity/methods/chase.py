"""Chase: sparse training that removes channels on the way (Yin et al., arXiv 2305.19454).

Dynamic sparse training makes some channels much sparser than others; Chase removes those while
training goes on, and gives their weights to the rest. With d the final density and N the number of
weights of the network as it was built:

1. Each ``every`` steps the smallest |w| of all layers go until d N are left; then the largest
   |gradient| of all layers grow up to rho(t) N (Chase's soft memory bound, as MEST's EM&S), with
   rho(t) = d + overshoot (1 + cos(pi t / T)) / 2 until T = ``stop_overshoot``. So between updates
   the network is denser than asked. From T on as many are grown as dropped (``drop_fraction``).
2. Each ``channel_every`` steps until ``stop_channels`` channels go until their removed share is
   S (1 - (1 - t / T_c)^3), S = ``channels``: those with the lowest score of all layers, but no
   layer falls below floor(outputs x (1 - S) x ``floor``). A removed channel has no weights, bias
   or normalisation and its reader no weights for it, for good.

Scores: ``umm`` is the mean |w| of the whole filter, absent weights as zeros (the paper's choice,
``mag_wise`` in the code), ``mmm`` that of its present weights. Only channels that one other layer
reads can go; those of a residual stream stay (see :mod:`sparsebench.sparsity.compact`).

Official code: luuyin/chase. On purpose we differ: counts are exact, of equal scores the lower index
stays (the code draws lots to come near its count); removals fall on multiples of ``channel_every``
and not half an interval beside them; the cubic ends at the last removal, so that S is reached; and
weights are pruned to d N at the last update.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparsebench.errors import UserError
from sparsebench.sparsity import updates
from sparsebench.sparsity.compact import Chain, chains, columns_of, silence
from sparsebench.sparsity.composed import Composed
from sparsebench.sparsity.masks import pack, unpack
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.spec import MethodSpec, duration, number
from sparsebench.sparsity.structure import Unstructured
from sparsebench.sparsity.time import Duration
from sparsebench.sparsity.topk import count, positions


@dataclass(frozen=True)
class Options:
    """Options of Chase."""

    overshoot: float = number(0.05, "[0, 1)", "share of all weights grown beyond the density")
    stop_overshoot: str = duration("81%", "when as many are grown as dropped")
    channels: float = number(0.3, "[0, 1)", "share of the channels to remove")
    channel_every: str = duration("1.25%", "steps between removals of channels")
    stop_channels: str = duration("81%", "when the last channels go")
    floor: float = number(0.5, "(0, 1]", "share of its proportional number a layer keeps at least")
    score: str = field(default="umm", metadata={"choices": ("umm", "mmm")})


class Chase(Composed):
    """Global dynamic sparse training above the target density, and a cubic removal of channels.

    Attributes:
        dead: removed channels, bool, by the name of the weight that made them.
    """

    kind: ClassVar[dict[str, str]] = {"pattern": "unstructured and channel"}
    Options: ClassVar[type] = Options
    #: Whether the final network may be smaller than it was built.
    removes_channels: ClassVar[bool] = True

    def _check_parts(self, spec: MethodSpec) -> None:
        super()._check_parts(spec)
        if type(self.structure) is not Unstructured:
            raise UserError(
                f"method={spec.name}: it removes channels and single weights, and needs "
                "structure=unstructured"
            )
        if not spec.drop or spec.storage != "zeroed" or spec.sparsity_schedule != "constant":
            raise UserError(
                f"method={spec.name}: it needs a method.drop, a method.grow, "
                "method.storage=zeroed and method.sparsity_schedule=constant"
            )

    def start(self, state: TrainState) -> None:
        """Random masks; and which channels can be removed at all."""
        super().start(state)
        found = chains(state.model) if self.sparsity > 0 else {}
        self._chains = {name: chain for name, chain in found.items() if name in state.masks}
        self.dead = {
            name: torch.zeros(weight.shape[0], dtype=torch.bool, device=weight.device)
            for name, weight in state.masks.parameters.items()
            if name in self._chains
        }
        if self.sparsity > 0 and self.options.channels > 0 and not self.dead:
            state.notes.append("chase: no channel of this network can be removed")

    # --- channels ----------------------------------------------------------------------------

    @torch.no_grad()
    def after_step(self, state: TrainState) -> None:
        """Remove channels if it is time, keep those removed silent, then update the weights."""
        if not self._fault:
            self._amputate(state)
        for name, chain in self._chains.items():
            if self.dead[name].any():
                silence(state.model, chain, self.dead[name], state.optimizers)
        super().after_step(state)

    def _steps(self, state: TrainState, option: str) -> int:
        given = Duration.parse(getattr(self.options, option), f"method.options.{option}")
        return int(given.steps(state.total_steps, state.steps_per_epoch))

    def _amputate(self, state: TrainState) -> None:
        """Bring the number of channels to that of the cubic schedule."""
        every = max(1, self._steps(state, "channel_every"))
        last = self._steps(state, "stop_channels") // every * every
        if not self.dead or state.step > last or state.step % every:
            return
        share = self.options.channels * (1.0 - (1.0 - state.step / last) ** 3)
        total = sum(channels.numel() for channels in self.dead.values())
        missing = round(share * total) - sum(count(channels) for channels in self.dead.values())
        for name, channels in self._lowest(state, missing).items():
            self.dead[name] |= channels
            self._remove(state, self._chains[name], name, channels)

    def _lowest(self, state: TrainState, number: int) -> dict[str, Tensor]:
        """The channels of the lowest scores over all layers, with regard to the layers' floors."""
        room = {name: count(~dead) - self.least(dead.numel()) for name, dead in self.dead.items()}
        ranked = []
        for order, (name, dead) in enumerate(self.dead.items()):
            scores = self.channel_scores(state, name).tolist()
            ranked += [
                (scores[i], -order, -i, name) for i in positions(~dead).tolist()
            ]  # of equal scores the lower index stays
        chosen = {name: torch.zeros_like(dead) for name, dead in self.dead.items()}
        for _, _, index, name in sorted(ranked):
            if number > 0 and room[name] > 0:
                chosen[name][-index] = True
                room[name] -= 1
                number -= 1
        return chosen

    def least(self, channels: int) -> int:
        """The number of channels that a layer of so many keeps; at least one."""
        exact: float = channels * (1.0 - self.options.channels) * self.options.floor
        return max(1, math.floor(exact + 1e-9))

    def channel_scores(self, state: TrainState, name: str) -> Tensor:
        """The score of each channel of a layer."""
        weight = state.masks.parameters[name].detach().abs().flatten(1)
        umm: bool = self.options.score == "umm"
        present = state.masks[name].flatten(1).sum(1).clamp(min=1)
        return weight.mean(1) if umm else weight.sum(1) / present

    def _remove(self, state: TrainState, chain: Chain, name: str, channels: Tensor) -> None:
        mask = state.masks[name]
        rows = channels.view(-1, *[1] * (mask.ndim - 1))
        none = channels.nonzero().view(-1)[:0]
        state.masks.move(name, positions(mask & rows), none, state.optimizers)
        reader = f"{chain.reader}.weight"
        if reader in state.masks:
            mask = state.masks[reader]
            columns = columns_of(chain, channels).view(1, -1, *[1] * (mask.ndim - 2))
            state.masks.move(reader, positions(mask & columns), none, state.optimizers)

    # --- weights -----------------------------------------------------------------------------

    def density(self, state: TrainState) -> float:
        """The density that weights are grown to at this step, rho(t)."""
        assert self._window is not None
        stop, final = self._steps(state, "stop_overshoot"), 1.0 - self.sparsity
        if state.step >= min(stop, self._window.last):
            return final
        extra = self.options.overshoot * (1.0 + math.cos(math.pi * state.step / stop)) / 2.0
        return float(min(1.0, final + extra))

    def update(self, state: TrainState) -> None:
        """Drop the smallest weights of all layers, then grow the largest gradients of all."""
        assert self._window is not None
        total = sum(state.masks.sizes.values())
        final, now = round((1.0 - self.sparsity) * total), sum(state.masks.nonzeros.values())
        drop = max(0, now - final)
        if state.step >= self._steps(state, "stop_overshoot"):
            fraction = self._window.drop_fraction(self.spec, state.step)
            drop = max(drop, math.floor(fraction * now + 1e-9))
        self._prune_to(state, now - drop)
        self._grow_to(state, round(self.density(state) * total))

    def _prune_to(self, state: TrainState, number: int) -> None:
        assert callable(self._drop)
        present = self.structure.present(state.masks)
        less = sum(count(units) for units in present.values()) - number
        gone = updates.worst(self._layers(state), present, self._drop, less, self.structure)
        for name, units in gone.items():
            self._move(state, name, units, units[:0], None)

    def _grow_to(self, state: TrainState, number: int) -> None:
        assert callable(self._grow)
        free = self._free(state)
        more = number - sum(state.masks.nonzeros.values())
        more = max(0, min(more, sum(count(units) for units in free.values())))
        layers = self._layers(state)
        grown = updates.best(layers, free, self._grow, more, self.structure)
        for name, units in grown.items():
            self._move(state, name, units[:0], units, layers[name])

    def _free(self, state: TrainState) -> dict[str, Tensor]:
        """Absent weights between living channels, flat, by layer."""
        free = {name: ~mask for name, mask in state.masks.items()}
        for name, dead in self.dead.items():
            free[name][dead] = False
            reader = f"{self._chains[name].reader}.weight"
            if reader in free:
                free[reader][:, columns_of(self._chains[name], dead)] = False
        return {name: places.reshape(-1) for name, places in free.items()}

    # --- checkpoints -------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a composed method keeps, and which channels are gone, as bits."""
        return {**super().state_dict(), "dead": {n: pack(dead) for n, dead in self.dead.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        super().load_state_dict(state)
        for name, bits in state["dead"].items():
            before = self.dead[name]
            self.dead[name] = unpack(bits, before.shape).to(before.device)
