"""Units of a network, in sets that layers share: what one layer gives out another takes in.

A unit is a feature, or a channel of a map. Layers whose outputs are added, as at a shortcut, have
one set of units. A connection is a weight, or a whole kernel of a convolution; connections of a
layer are given as bool [outputs, inputs], where a flattened map has several inputs for a unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparsebench.errors import UserError
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.topk import positions
from sparsebench.sparsity.wiring import END, Wire, wiring

#: By set of units, bool: some of them.
Chosen = Sequence[Tensor]


@dataclass
class Units:
    """Sets of units by number, and the layers between them.

    Attributes:
        sizes: units of each set.
        source: for each layer, by the name of its weight, the set that feeds it; None where the
            network begins.
        target: for each layer the set of its outputs.
        output: the set of the network's outputs.
        wires: the layers where they are called.
    """

    sizes: list[int] = field(default_factory=list)
    source: dict[str, int | None] = field(default_factory=dict)
    target: dict[str, int] = field(default_factory=dict)
    output: int = -1
    wires: dict[str, Wire] = field(default_factory=dict)

    @property
    def hidden(self) -> list[int]:
        """Sets that are not the network's outputs."""
        return [number for number in range(len(self.sizes)) if number != self.output]

    def none(self) -> list[Tensor]:
        """No unit of any set."""
        return [torch.zeros(size, dtype=torch.bool) for size in self.sizes]

    def outputs(self, name: str, chosen: Chosen) -> Tensor:
        """What is said of the outputs of a layer."""
        return chosen[self.target[name]][: self.wires[name].outputs]

    def to_inputs(self, name: str, values: Sequence[Tensor]) -> Tensor:
        """For each input of a layer that others feed the value of its unit."""
        wire, source = self.wires[name], self.source[name]
        assert source is not None
        return values[source][: wire.channels].repeat_interleave(wire.repeat)

    def inputs(self, name: str, chosen: Chosen) -> Tensor:
        """Bool over the inputs of a layer: those of chosen units, and all of the network's."""
        if self.source[name] is None:
            return torch.ones(self.wires[name].inputs, dtype=torch.bool)
        return self.to_inputs(name, chosen)

    def between(self, name: str, sources: Chosen, targets: Chosen) -> Tensor:
        """The connections of a layer from some units to some others, bool [outputs, inputs]."""
        return self.outputs(name, targets)[:, None] & self.inputs(name, sources)

    def of_inputs(self, name: str, values: Tensor) -> Tensor:
        """Sums over the inputs [inputs] that belong to each unit of the set that feeds a layer."""
        source = self.source[name]
        assert source is not None
        found = values.new_zeros(self.sizes[source])
        sums = values.view(-1, self.wires[name].repeat).sum(1)
        found[: len(sums)] = sums
        return found


def units_of(state: TrainState) -> Units:
    """The units of a network and its layers, each of which must be sparse.

    Raises:
        UserError: a layer is not sparse, is called twice, or joins units otherwise than in pairs.
    """
    wires = wiring(state)
    _check(state, wires)
    label = list(range(len(wires)))  # of the set that a layer's outputs are in
    ends = [number for number, wire in enumerate(wires) if END in wire.after]
    for group in (ends, *(list(wire.before) for wire in wires)):
        together = {label[number] for number in group}
        label = [min(together) if each in together else each for each in label]
    sets = {each: number for number, each in enumerate(sorted(set(label)))}
    found = Units(sizes=[0] * len(sets), output=sets[label[ends[0]]])
    for number, wire in enumerate(wires):
        target = sets[label[number]]
        found.sizes[target] = max(found.sizes[target], wire.outputs)
        found.target[wire.name] = target
        found.source[wire.name] = sets[label[next(iter(wire.before))]] if wire.before else None
        found.wires[wire.name] = wire
    return found


def _check(state: TrainState, wires: list[Wire]) -> None:
    names = [wire.name for wire in wires]
    for wire in wires:
        why = None
        if wire.name not in state.masks:
            why = "is not sparse, so its units can't be parted; see selector"
        elif wire.groups > 1:
            why = "is a grouped convolution"
        elif wire.channels > wire.inputs:
            why = "takes several units in as one"
        elif names.count(wire.name) > 1:
            why = "is called more than once"
        if why:
            raise UserError(
                f"method: connections between units are needed, and '{wire.name}' {why}"
            )


def connections(mask: Tensor) -> Tensor:
    """The connections of a layer, bool [outputs, inputs], from a mask of whole kernels."""
    return mask.flatten(2).any(2) if mask.dim() > 2 else mask


def weights_of(pairs: Tensor, like: Tensor) -> Tensor:
    """A mask in a weight's shape and on its device from connections [outputs, inputs]."""
    wide = pairs.view(*pairs.shape, *(1,) * (like.dim() - 2))
    return wide.expand(like.shape).to(like.device)


def draw(among: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Some of the connections [outputs, inputs] (bool), chosen at random."""
    where = positions(among.cpu())
    chosen = where[torch.randperm(len(where), generator=generator)[:count]]
    found = torch.zeros(among.numel(), dtype=torch.bool).index_fill_(0, chosen, True)
    return found.view(among.shape)
