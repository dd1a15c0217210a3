"""Random search: of K random topologies the one with the lowest loss before training.

Farahani, arXiv 2403.08265: a neutral baseline for searches of sparse networks, whose claim is that
the topology found trains no better than a random one. Each candidate keeps the values of the
initialisation; the loss is that of one batch, the same for all, in training mode; nothing is
trained. With K = 1 the result is the random topology itself, and no data are looked at. With a
larger K the same candidates are drawn first, so the lowest loss can only fall.

What is random (``options.space``):

* ``nodes`` (the paper's): each hidden layer keeps the same share of its units, any of them, and
  the topology is what connects them. The share is the smallest that has room for the connections
  that ``sparsity`` leaves; as nodes come in whole numbers, those too many are removed at random, so
  that the count is exact.
* ``layers``: how much each layer keeps is random (in proportion to its size and a uniform number),
  and so is where.
* ``weights``: places are random, counts follow the distribution: with K = 1 it is ``static``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor

from sparsebench.errors import UserError
from sparsebench.sparsity import scores, updates
from sparsebench.sparsity.composed import Composed
from sparsebench.sparsity.examples import undisturbed
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.topk import count
from sparsebench.sparsity.wiring import END, Wire, fed, wiring


@dataclass(frozen=True)
class Options:
    """What is searched, and how long."""

    candidates: int = field(default=100, metadata={"least": 1, "most": 1_000_000})
    space: str = field(default="nodes", metadata={"choices": ("nodes", "layers", "weights")})


class RandomSearch(Composed):
    """Places the first masks by the search; they never change."""

    Options = Options

    def _place(self, state: TrainState, target: float) -> None:
        if self.structure.grouped:
            raise UserError(
                "method.engine=random_search: it places single weights, and needs "
                "structure=unstructured"
            )
        wires = wiring(state) if self.options.space == "nodes" else []
        best = self._candidate(state, target, wires)
        if self.options.candidates > 1:
            (batch,) = state.data.take(state, 1)
            losses = [_loss(state, batch)]
            for _ in range(self.options.candidates - 1):
                masks = self._candidate(state, target, wires)
                losses.append(_loss(state, batch))
                if losses[-1] < min(losses[:-1]):
                    best = masks
            state.notes.append(
                f"the lowest loss of {len(losses)} random topologies before training is "
                f"{min(losses):.5g} (median {median(losses):.5g}, first {losses[0]:.5g})"
            )
        for name, mask in best.items():
            state.masks.set(name, mask)

    def _candidate(self, state: TrainState, target: float, wires: list[Wire]) -> dict[str, Tensor]:
        """Set random masks, and give them back."""
        allowed = {n: torch.ones_like(p, dtype=torch.bool) for n, p in _parameters(state).items()}
        for name, mask in allowed.items():
            state.masks.set(name, mask)
        sizes = state.masks.sizes
        total = round((1.0 - target) * sum(sizes.values()))
        counts: updates.Counts = total
        if self.options.space == "weights":
            counts = self._counts(state, target)
        elif self.options.space == "layers":
            draws = torch.rand(len(sizes), generator=state.generator).tolist()
            shares = {n: sizes[n] * draw for n, draw in zip(sizes, draws, strict=True)}
            counts = updates.share_out(total, shares, sizes)
        else:
            allowed = _of_some_units(state, wires, total)
        flat = {name: mask.view(-1) for name, mask in allowed.items()}
        chosen = updates.best(self._layers(state), flat, scores.random, counts, self.structure)
        for name, places in chosen.items():
            mask = torch.zeros_like(flat[name]).index_fill_(0, places, True)
            state.masks.set(name, mask.view_as(allowed[name]))
        return dict(state.masks.items())


def _parameters(state: TrainState) -> Mapping[str, Tensor]:
    return {n: p.detach().contiguous() for n, p in state.masks.parameters.items()}


@torch.no_grad()
def _loss(state: TrainState, batch: object) -> float:
    """Loss of one batch with the masks of the moment."""
    with undisturbed(state.model):
        state.model.train()
        for name, parameter in state.masks.parameters.items():
            parameter.mul_(state.masks.factor(name))
        return float(state.data.loss(state.model, batch))


def _of_some_units(state: TrainState, wires: list[Wire], weights: int) -> dict[str, Tensor]:
    """All connections between some random units, at least this many."""
    orders = [torch.randperm(wire.outputs, generator=state.generator) for wire in wires]
    low, high = 0, max(wire.outputs for wire in wires)  # in this many parts of a layer
    scale = high
    while high - low > 1:
        middle = (low + high) // 2
        number = sum(
            count(mask) for mask in _induced(state, wires, orders, middle / scale).values()
        )
        low, high = (low, middle) if number >= weights else (middle, high)
    return _induced(state, wires, orders, high / scale)


def _induced(
    state: TrainState, wires: list[Wire], orders: list[Tensor], share: float
) -> dict[str, Tensor]:
    """Masks of what connects the first units, in some order, of each hidden layer."""
    kept: dict[int, Tensor] = {}
    masks = {n: torch.zeros_like(p, dtype=torch.bool) for n, p in _parameters(state).items()}
    for n, (wire, order) in enumerate(zip(wires, orders, strict=True)):
        number = wire.outputs if END in wire.after else max(1, round(share * wire.outputs))
        device = wire.weight.device
        kept[n] = torch.zeros(wire.outputs, dtype=torch.bool, device=device)
        kept[n][order[:number].to(device)] = True
        inputs = fed(wire, kept).view(wire.groups, -1)
        inputs = inputs.repeat_interleave(wire.outputs // wire.groups, 0)
        if wire.name in masks:
            pairs = inputs & kept[n][:, None]
            shape = masks[wire.name].shape
            masks[wire.name] |= pairs[:, :, None].expand(wire.weight.shape).reshape(shape)
    return masks
