"""PHEW: the first masks are paths of random walks that prefer large weights.

Patil and Dovrolis, arXiv 2010.11354; code: ShreyasMalakarjunPatil/PHEW. Walks begin in turn at an
input (the first, the second, ...) and at an output, and go on to the other end. From a unit the
next weight is drawn with probability |w| over the sum of all |w| of that unit, ahead or back; so
a kernel of a convolution is drawn by its L1 norm, and one weight in it by its size. Where branches
meet or part, each is as likely. All that was visited is kept; no data are needed.

Differs on purpose: the official code stops after the walk that brings the count to its target or
beyond it; here the walk that would go beyond is left out, and the count is completed by weights
between units that are on paths already, by size as in a walk. So it is exact, and each weight
kept is on a path. The same happens where walks hardly find anything new, at low sparsity. Biases
stay (the code masks those of units never visited).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparsebench.errors import UserError
from sparsebench.sparsity.initial import places
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.topk import count, topk_indices
from sparsebench.sparsity.updates import Counts
from sparsebench.sparsity.wiring import END, Wire, fed, needed, wiring

_WALKS = 512  # made at a time
_STALLED = 0.1  # share of visits that must be new
Visit = tuple[Tensor, Tensor]  # numbers of walks, and the weight each visits, counted over all


@places
def phew(state: TrainState, counts: Counts) -> Mapping[str, Tensor]:
    """Masks of the paths walked.

    Args:
        state: the run.
        counts: how many weights to keep, over all layers.

    Returns:
        By name, bool of the weight's shape.

    Raises:
        UserError: counts by layer were asked for, or fewer weights than a path needs.
    """
    if not isinstance(counts, int):
        raise UserError(
            "method.initial_scope=layer: walks share weights out themselves; "
            "method.initial=phew needs method.initial_scope=global"
        )
    walker = _Walker(state)
    walker.fill(counts)
    return walker.masks()


class _Walker:
    """Walks through the wires, and what they have visited.

    Attributes:
        kept: bool over all sparse weights, layer after layer.
    """

    def __init__(self, state: TrainState) -> None:
        self.generator = state.generator
        self.parameters = state.masks.parameters
        self.wires = [_on_cpu(wire) for wire in wiring(state)]
        self.offsets: dict[str, int] = {}
        total = 0
        for name, size in state.masks.sizes.items():
            self.offsets[name] = total
            total += size
        self.kept = torch.zeros(total, dtype=torch.bool)
        self.starts = [
            (n, unit)
            for n, wire in enumerate(self.wires)
            if not wire.before and wire.after
            for unit in range(wire.inputs)
        ]
        self.ends = [
            (n, unit)
            for n, wire in enumerate(self.wires)
            if END in wire.after
            for unit in range(wire.outputs)
        ]
        self.walked = 0

    def fill(self, wanted: int) -> None:
        """Walk until this many weights are kept."""
        while room := wanted - count(self.kept):
            walks, weights = self._walk()
            going_on = self._keep(walks, weights, room)
            left = wanted - count(self.kept)
            if left and not going_on and not self._complete(left):
                raise UserError(
                    f"sparsity: no path fits into the last {left} of {wanted} weights; "
                    "another sparsity is needed for method.initial=phew"
                )

    def masks(self) -> dict[str, Tensor]:
        """By name, bool of the weight's shape."""
        return {
            name: self._of(name).view(parameter.shape).to(parameter.device)
            for name, parameter in self.parameters.items()
        }

    def _of(self, name: str) -> Tensor:
        first = self.offsets[name]
        return self.kept[first : first + self.parameters[name].numel()]

    def _walk(self) -> Visit:
        """Visits of some walks, every other one ahead and back."""
        numbers = torch.arange(self.walked, self.walked + _WALKS)
        self.walked += _WALKS
        ahead = self._ahead(numbers[0::2], self._begin(numbers[0::2], self.starts))
        back = self._back(numbers[1::2], self._begin(numbers[1::2], self.ends))
        visits = [*ahead, *back]
        return torch.cat([walks for walks, _ in visits]), torch.cat([w for _, w in visits])

    def _begin(self, numbers: Tensor, places: list[tuple[int, int]]) -> Tensor:
        return torch.tensor(places)[numbers // 2 % len(places)]

    def _ahead(self, numbers: Tensor, where: Tensor) -> list[Visit]:
        at, unit, visits = where[:, 0], where[:, 1], []
        for n, wire in enumerate(self.wires):
            here = (at == n).nonzero().view(-1)
            if not len(here):
                continue
            group = wire.weight.shape[1]
            inside, which = unit[here] % group, unit[here] // group
            outs = wire.outputs // wire.groups
            options = wire.weight.view(wire.groups, outs, *wire.weight.shape[1:])[which, :, inside]
            out, place = self._choose(options)
            out = out + which * outs
            visits += self._visit(wire, numbers[here], out, inside, place)
            at[here] = self._draw(wire.after, len(here))
            for target in set(wire.after) - {END}:
                going = here[at[here] == target]
                unit[going] = self._into(self.wires[target], out[at[here] == target])
        return visits

    def _back(self, numbers: Tensor, where: Tensor) -> list[Visit]:
        at, unit, visits = where[:, 0], where[:, 1], []
        for n in reversed(range(len(self.wires))):
            wire = self.wires[n]
            here = (at == n).nonzero().view(-1)
            if not len(here):
                continue
            inside, place = self._choose(wire.weight[unit[here]])
            visits += self._visit(wire, numbers[here], unit[here], inside, place)
            which = unit[here] // (wire.outputs // wire.groups)
            channel = self._out_of(wire, inside + which * wire.weight.shape[1])
            unit[here] = channel
            at[here] = self._feeder(wire, channel)
        return visits

    def _choose(self, options: Tensor) -> tuple[Tensor, Tensor]:
        """Of (walks, units, positions) one unit and position each, by size."""
        sizes = options.abs().flatten(1) + torch.finfo(torch.float32).tiny  # all may be 0
        flat = torch.multinomial(sizes, 1, generator=self.generator).view(-1)
        return flat // options.shape[2], flat % options.shape[2]

    def _visit(
        self, wire: Wire, walks: Tensor, out: Tensor, inside: Tensor, place: Tensor
    ) -> list[Visit]:
        if wire.name not in self.offsets:  # a layer that is not sparse is walked through
            return []
        _, width, positions = wire.weight.shape
        return [(walks, self.offsets[wire.name] + (out * width + inside) * positions + place)]

    def _draw(self, chances: Mapping[int, float], number: int) -> Tensor:
        names = torch.tensor(list(chances))
        if len(names) == 1:
            return names.expand(number)
        weights = torch.tensor(list(chances.values()))
        return names[torch.multinomial(weights, number, True, generator=self.generator)]

    def _into(self, wire: Wire, units: Tensor) -> Tensor:
        """An input of a layer that some units feed; of several one at random."""
        if wire.channels > wire.inputs:
            return units % wire.inputs
        return units * wire.repeat + self._any(wire.repeat, units)

    def _out_of(self, wire: Wire, inputs: Tensor) -> Tensor:
        """A unit that feeds some inputs of a layer; of several one at random."""
        if wire.channels > wire.inputs:
            return inputs + wire.inputs * self._any(wire.channels // wire.inputs, inputs)
        return inputs // wire.repeat

    def _any(self, choices: int, like: Tensor) -> Tensor:
        if choices == 1:
            return torch.zeros_like(like)
        return torch.randint(choices, like.shape, generator=self.generator)

    def _feeder(self, wire: Wire, channel: Tensor) -> Tensor:
        """One of the layers that have the unit a walk comes from."""
        if not wire.before:
            return torch.full_like(channel, END)
        names = torch.tensor(list(wire.before))
        widths = torch.tensor([self.wires[n].outputs for n in wire.before])
        chances = torch.tensor(list(wire.before.values())) * (channel[:, None] < widths)
        return names[torch.multinomial(chances, 1, generator=self.generator).view(-1)]

    def _keep(self, walks: Tensor, weights: Tensor, room: int) -> bool:
        """Keep what the walks visited, in their order, as long as whole walks fit.

        Returns:
            Whether all fitted and walking is still worth it.
        """
        new = ~self.kept[weights]
        walks, weights = walks[new], weights[new]
        order = walks.argsort(stable=True)
        walks, weights = walks[order], weights[order]
        by_weight = weights.argsort(stable=True)
        first = torch.ones(len(weights), dtype=torch.bool)
        first[by_weight[1:]] = weights[by_weight[1:]] != weights[by_weight[:-1]]
        walks, weights = walks[first], weights[first]
        beyond = walks[room] if len(walks) > room else self.walked
        fits = walks < beyond
        self.kept[weights[fits]] = True
        return bool(fits.all()) and len(walks) > _STALLED * len(new)

    def _complete(self, room: int) -> int:
        """Keep up to ``room`` more weights between units that are on paths; how many they were."""
        candidates = self._between() & ~self.kept
        number = min(room, count(candidates))
        sizes = torch.cat([p.detach().abs().reshape(-1).cpu() for p in self.parameters.values()])
        noise = torch.rand(sizes.numel(), generator=self.generator, dtype=torch.float64)
        score = sizes.double().log() - (-noise.log()).log()  # the highest k: drawn by size
        self.kept[topk_indices(score.clamp_min(-1e300), number, candidates)] = True
        return number

    def _between(self) -> Tensor:
        """Bool over all sparse weights: from a unit reached to one from which the end is."""
        present = [self._present(wire) for wire in self.wires]
        reached: dict[int, Tensor] = {}
        entered: dict[int, Tensor] = {}
        for n, wire in enumerate(self.wires):
            entered[n] = fed(wire, reached)
            reached[n] = (present[n] & _by_output(wire, entered[n])).any(1)
        leaving: dict[int, Tensor] = {}
        useful: dict[int, Tensor] = {}
        found = torch.zeros_like(self.kept)
        for n in reversed(range(len(self.wires))):
            wire = self.wires[n]
            leaving[n] = torch.full((wire.outputs,), END in wire.after)
            for target in set(wire.after) - {END}:
                units = needed(self.wires[target], useful[target], wire.outputs)
                leaving[n][: len(units)] |= units
            useful[n] = _by_input(wire, present[n] & leaving[n][:, None])
            if wire.name in self.offsets:
                open_ = _by_output(wire, entered[n]) & leaving[n][:, None]
                flat = open_[:, :, None].expand(wire.weight.shape).reshape(-1)
                first = self.offsets[wire.name]
                found[first : first + flat.numel()] |= flat
        return found

    def _present(self, wire: Wire) -> Tensor:
        """Bool (outputs, inputs of a group): where there is a connection."""
        if wire.name not in self.offsets:
            return torch.ones(wire.weight.shape[:2], dtype=torch.bool)
        return self._of(wire.name).view(wire.weight.shape).any(2)


def _by_output(wire: Wire, inputs: Tensor) -> Tensor:
    """Bool over inputs, as seen by each output: (outputs, inputs of its group)."""
    outs = wire.outputs // wire.groups
    return inputs.view(wire.groups, -1).repeat_interleave(outs, 0)


def _by_input(wire: Wire, connections: Tensor) -> Tensor:
    """Bool over inputs: those with any of these connections (outputs, inputs of a group)."""
    return connections.view(wire.groups, -1, connections.shape[1]).any(1).reshape(-1)


def _on_cpu(wire: Wire) -> Wire:
    wire.weight = wire.weight.float().cpu().contiguous()
    return wire
