"""Which layer feeds which: a network as a graph of its layers and of their units.

A unit is a channel or a feature. The graph is read from what autograd recorded in one forward
pass: between two layers there may be anything that leaves units at their places, such as
normalisation, activations, pooling, sums with a shortcut, or a flattening of feature maps.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sparsebench.errors import UserError
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.probing import logits, probing, sample_of_ones

END = -1  # stands for the output of the network where a number of a layer is expected
Node = Any  # of autograd's graph
Chances = dict[int, float]  # of layers, by number
Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
Use = tuple[str, Layer, Node, Node]  # name of the weight, and autograd's nodes before and after


@dataclass
class Wire:
    """A layer where it is called.

    Attributes:
        name: of its weight.
        weight: (outputs, inputs of a group, one or more positions), detached.
        groups: of a grouped convolution, else 1.
        before: the layers that feed it, each with the share of the summands it is in; empty
            where the network begins.
        after: the layers it feeds, with the share of the branches taken; ``END`` is the output.
        channels: units that are fed to it.
        repeat: how many of its inputs belong to a unit that is fed to it (flattened maps).
    """

    name: str
    weight: Tensor
    groups: int
    before: Chances = field(default_factory=dict)
    after: Chances = field(default_factory=dict)
    channels: int = 0
    repeat: int = 1

    @property
    def inputs(self) -> int:
        """Number of inputs."""
        return int(self.weight.shape[1]) * self.groups

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return int(self.weight.shape[0])


def wiring(state: TrainState) -> list[Wire]:
    """The layers in the order they are called, which is one from input to output.

    Raises:
        UserError: the network has sparse weights whose units can't be followed.
    """
    uses, output = _watch(state)
    owners: dict[Node, int] = {}
    wires = []
    for number, (name, module, _, end) in enumerate(uses):
        owners[end] = number
        weight = module.weight.detach()
        groups = getattr(module, "groups", 1)
        wires.append(Wire(name, weight.reshape(*weight.shape[:2], -1), groups))
    back = _Backwards(owners)
    for number, (_, _, source, _) in enumerate(uses):
        wires[number].before = back.sources(source, number)
    back.sources(output, END)
    for number in reversed(range(len(uses))):  # what leads nowhere is no branch to take
        wires[number].after = back.targets(uses[number][3])
        back.ends[number] = bool(wires[number].after)
    for wire, (_, module, *_) in zip(wires, uses, strict=True):
        _fit(wire, [wires[number].outputs for number in wire.before], module)
    _check(state, wires)
    return wires


def fed(wire: Wire, reached: dict[int, Tensor]) -> Tensor:
    """Bool over the inputs of a layer: those that a reached output of an earlier layer feeds.

    Args:
        wire: the layer.
        reached: for layers by number, bool over outputs; all inputs of the network are reached.
    """
    if not wire.before:
        return torch.ones(wire.inputs, dtype=torch.bool, device=wire.weight.device)
    channels = torch.zeros(wire.channels, dtype=torch.bool, device=wire.weight.device)
    for number in wire.before:
        units = reached[number]
        channels[: len(units)] |= units
    if wire.channels > wire.inputs:  # several units to an input, such as query, key and value
        return channels.view(-1, wire.inputs).any(0)
    return channels.repeat_interleave(wire.repeat)


def needed(wire: Wire, inputs: Tensor, outputs: int) -> Tensor:
    """Bool over the outputs of an earlier layer: those that feed some inputs (bool) of a layer."""
    if wire.channels > wire.inputs:
        return inputs.repeat(wire.channels // wire.inputs)[:outputs]
    return inputs.view(-1, wire.repeat).any(1)[:outputs]


def _watch(state: TrainState) -> tuple[list[Use], Node]:
    """Name, module and nodes of input and output of each layer called; node of the output."""
    layers = {
        module: f"{name}.weight" if name else "weight"
        for name, module in state.model.named_modules()
        if isinstance(module, Layer)
    }
    uses: list[Use] = []

    def note(module: Layer, args: tuple[Tensor, ...], output: Tensor) -> None:
        uses.append((layers[module], module, args[0].grad_fn, output.grad_fn))

    args, kwargs = sample_of_ones(state)
    dtype = next(state.model.parameters()).dtype
    handles = [module.register_forward_hook(note) for module in layers]
    try:
        with probing(state.model, training=False):
            given = [value.to(dtype) if _is_float(value) else value for value in args]
            output = logits(state.model(*given, **kwargs)).grad_fn
    finally:
        for handle in handles:
            handle.remove()
    return uses, output


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


class _Backwards:
    """Follows autograd's graph from a place to the layers before it, keeping what it saw."""

    def __init__(self, owners: dict[Node, int]) -> None:
        self.owners = owners
        self.known: dict[Node, Chances] = {}
        self.ends = {END: True}  # whether the output is reached from a layer
        self.reach: dict[Node, Chances] = {}
        self.consumers: dict[Node, list[Node | int]] = defaultdict(list)

    def sources(self, node: Node, number: int) -> Chances:
        """The layers that reach a node, which a layer (or the output) of this number takes in."""
        found = self._above(node) if node is not None else {}
        if found:
            self.consumers[node].append(number)
        return found

    def targets(self, node: Node) -> Chances:
        """The layers, or the output, that a node reaches."""
        if node not in self.reach:
            found = []
            for taker in self.consumers[node]:
                if not isinstance(taker, int):
                    found.append(self.targets(taker))
                elif self.ends[taker]:
                    found.append({taker: 1.0})
            self.reach[node] = _mean(found)
        return self.reach[node]

    def _above(self, node: Node) -> Chances:
        if node in self.owners:
            return {self.owners[node]: 1.0}
        if node not in self.known:
            inputs = [(above, self._above(above)) for above, _ in node.next_functions if above]
            useful = [(above, chances) for above, chances in inputs if chances]
            if len(useful) > 1 and node.name().startswith(("CatBackward", "StackBackward")):
                raise _unknown("features that are put together can't be followed")
            for above, _ in useful:
                self.consumers[above].append(node)
            self.known[node] = _mean([chances for _, chances in useful])
        return self.known[node]


def _mean(chances: list[Chances]) -> Chances:
    total: Chances = defaultdict(float)
    kept = [each for each in chances if each]
    for each in kept:
        for number, chance in each.items():
            total[number] += chance / len(kept)
    return dict(total)


def _fit(wire: Wire, outputs: list[int], module: Layer) -> None:
    """How units that are fed to a layer become its inputs.

    A shortcut of fewer channels than the sum it is in is taken to be filled up at its end.
    """
    wire.channels = channels = max(outputs, default=wire.inputs)
    if channels <= wire.inputs:
        wire.repeat = wire.inputs // channels
    grown = wire.repeat > 1 and not isinstance(module, nn.Linear)  # only maps are flattened
    if grown or max(channels, wire.inputs) % min(channels, wire.inputs):
        raise _unknown(f"{channels} units become {wire.inputs} inputs of '{wire.name}'")


def _check(state: TrainState, wires: list[Wire]) -> None:
    reached = {wire.name for wire in wires if wire.after}
    for name in state.masks:
        if name not in reached:
            raise _unknown(f"'{name}' is on no path from the input to the output")


def _unknown(why: str) -> UserError:
    return UserError(f"method: paths through this network are not known: {why}")
