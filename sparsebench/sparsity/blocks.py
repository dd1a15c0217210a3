"""Structures whose units are groups of weights (blocks, channels), and constant fan-in.

A weight is seen as the matrix that a matrix product reads: (outputs, inputs), where the inputs of
a convolution are (in_channels x kernel height x kernel width) in this order. The score of a group
is the mean of the scores of its weights, so any score works with any group; a score that draws
numbers draws one for each group. A group counts as one unit, and a layer keeps the whole number of
groups nearest to its share of weights, at least one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from sparsebench.errors import UserError, bad_value
from sparsebench.sparsity.compact import Silence
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.registry import GROWERS, find
from sparsebench.sparsity.scores import Layer, Score, needs_of
from sparsebench.sparsity.spec import MethodSpec, StructureSpec
from sparsebench.sparsity.structure import Shape, Unstructured
from sparsebench.sparsity.topk import lowest_indices, positions, topk_indices


def matrix(shape: Shape) -> tuple[int, int]:
    """Rows (outputs) and columns (inputs x kernel) of a weight."""
    return shape[0], math.prod(shape[1:])


class Groups(Unstructured):
    """Weights that come and go together; a subclass says which."""

    grouped: ClassVar[bool] = True

    def owners(self, shape: Shape) -> Tensor:
        """For each weight, flat, the number of its group."""
        raise NotImplementedError  # abstract: each subclass has its own

    def number(self, shape: Shape) -> int:
        """Number of groups of a weight."""
        raise NotImplementedError  # abstract: each subclass has its own

    def count(self, shape: Shape, weights: int) -> int:
        """The whole number of groups nearest to this many weights; at least one."""
        return max(1, round(weights * self.number(shape) / math.prod(shape)))

    def units(self, mask: Tensor) -> Tensor:
        """Which groups have a weight."""
        shape = tuple(mask.shape)
        present = torch.zeros(self.number(shape), dtype=torch.bool, device=mask.device)
        owners = self.owners(shape).to(mask.device)
        return present.index_fill_(0, owners[mask.reshape(-1)], True)

    def elements(self, units: Tensor, shape: Shape) -> Tensor:
        """Flat positions of the weights of some groups."""
        chosen = torch.zeros(self.number(shape), dtype=torch.bool, device=units.device)
        chosen.index_fill_(0, units, True)
        return positions(chosen[self.owners(shape).to(units.device)])

    def best(self, score: Score, layer: Layer, among: Tensor, count: int) -> Tensor:
        """The ``count`` groups of the highest mean score."""
        if hasattr(score, "pick"):
            return super().best(score, self._of_groups(layer), among, count)
        return topk_indices(self.score(score, layer), count, among)

    def worst(self, score: Score, layer: Layer, among: Tensor, count: int) -> Tensor:
        """The ``count`` groups of the lowest mean score."""
        return lowest_indices(self.score(score, layer), count, among)

    def score(self, score: Score, layer: Layer) -> Tensor:
        """Mean score of each group."""
        if hasattr(score, "pick"):  # it draws numbers, and means of many would all be alike
            return score(self._of_groups(layer))
        values = score(layer)
        owners = self.owners(layer.shape).to(values.device)
        number = self.number(layer.shape)
        total = torch.zeros(number, dtype=values.dtype, device=values.device)
        return total.index_add_(0, owners, values) / owners.bincount(minlength=number)

    def _of_groups(self, layer: Layer) -> Layer:
        """A layer with one weight for each group."""
        weight = layer.weight.new_zeros(self.number(layer.shape))
        return replace(layer, weight=weight, seen={}, factor=None)


class Block(Groups):
    """Blocks of ``structure.block`` (outputs x inputs) weights.

    Where they do not divide a layer, ``structure.misfit`` decides: ``refuse`` it, ``pad`` (blocks
    at the edge are smaller), or ``skip`` (the layer stays dense; others do not make up for it).
    """

    def __init__(self, spec: StructureSpec | None = None) -> None:
        """Take the size of a block.

        Raises:
            UserError: it is not two whole numbers above 0.
        """
        spec = spec or StructureSpec(name="block", block=[4, 4])
        size = list(spec.block or [])
        if len(size) != 2 or any(not isinstance(n, int) or n < 1 for n in size):
            raise bad_value(
                "structure.block", spec.block, "two whole numbers above 0, such as [4,4]"
            )
        self.size = size[0], size[1]
        self.misfit = spec.misfit

    def check(self, shapes: Mapping[str, Shape], sparsity: float) -> None:
        """Refuse a block larger than a layer, and one that does not divide it if so asked."""
        block = f"structure.block=[{self.size[0]},{self.size[1]}]"
        for name, shape in shapes.items():
            rows, columns = matrix(shape)
            if self.size[0] > rows or self.size[1] > columns:
                raise UserError(
                    f"{block}: larger than '{name}', which has {rows} outputs x {columns} inputs"
                )
            if self.misfit == "refuse" and not self._fits(shape):
                raise UserError(
                    f"{block}: does not divide '{name}', which has {rows} outputs x {columns} "
                    "inputs; structure.misfit=pad makes blocks at the edge smaller, skip leaves "
                    "the layer dense"
                )

    def _fits(self, shape: Shape) -> bool:
        rows, columns = matrix(shape)
        return rows % self.size[0] == 0 and columns % self.size[1] == 0

    def _skips(self, shape: Shape) -> bool:
        return self.misfit == "skip" and not self._fits(shape)

    def number(self, shape: Shape) -> int:
        """Blocks down times blocks across; a layer that is skipped is one."""
        rows, columns = matrix(shape)
        return 1 if self._skips(shape) else -(-rows // self.size[0]) * -(-columns // self.size[1])

    def owners(self, shape: Shape) -> Tensor:
        """Blocks are numbered row by row."""
        rows, columns = matrix(shape)
        if self._skips(shape):
            return torch.zeros(rows * columns, dtype=torch.long)
        down, across = torch.arange(rows) // self.size[0], torch.arange(columns) // self.size[1]
        return (down[:, None] * -(-columns // self.size[1]) + across).reshape(-1)

    def score(self, score: Score, layer: Layer) -> Tensor:
        """Mean score of each block; a layer that is skipped outdoes all."""
        values = super().score(score, layer)
        return torch.full_like(values, math.inf) if self._skips(layer.shape) else values


class Channel(Groups):
    """Output channels (rows, filters): all weights of one come and go together.

    The last sparse layer keeps all its rows, as they are classes; and where layers compete, each
    keeps the best row it has. A channel without weights has no bias and no normalisation either,
    so that it is zero and can be removed; one that returns begins with scale 1.
    """

    #: Whether the final network may be smaller than it was built.
    removes_channels: ClassVar[bool] = True

    def __init__(self, spec: StructureSpec | None = None) -> None:
        """There are no options."""
        self.last = ""
        self._silence = Silence()

    def suits(self, spec: MethodSpec) -> None:
        """Refuse growth by what an absent channel does not have."""
        grow = spec.grow and find(spec.grow, GROWERS, "method.grow")
        if needs_of(grow) & {"gradient", "momentum"}:
            why = "an absent channel is zero behind its ReLU, so its gradient is zero: use random"
            raise bad_value("method.grow", spec.grow, why)

    def settle(self, state: TrainState) -> None:
        """Dead channels have no bias and no normalisation."""
        self._silence(state)

    def check(self, shapes: Mapping[str, Shape], sparsity: float) -> None:
        """Remember which layer is the last."""
        self.last = list(shapes)[-1]
        if len(shapes) == 1:
            raise UserError(
                f"structure=channel: '{self.last}' is the only sparse layer, and it keeps its rows"
            )

    def counts(self, shapes: Mapping[str, Shape], weights: Mapping[str, int]) -> dict[str, int]:
        """Rows of each layer; all of the last."""
        last = list(shapes)[-1]
        counts = super().counts(shapes, weights)
        return {name: shapes[name][0] if name == last else n for name, n in counts.items()}

    def together(self, units: Mapping[str, int], sparsity: float) -> int:
        """The share of the rows of all layers but the last, at least one each, and all of that."""
        *hidden, last = units.values()
        return max(len(hidden), round((1.0 - sparsity) * sum(hidden))) + last

    def number(self, shape: Shape) -> int:
        """One for each output."""
        return shape[0]

    def owners(self, shape: Shape) -> Tensor:
        """The row of each weight."""
        rows, columns = matrix(shape)
        return torch.arange(rows).repeat_interleave(columns)

    def score(self, score: Score, layer: Layer) -> Tensor:
        """Mean score of each row; nothing outdoes the best row that is present."""
        values = super().score(score, layer)
        if layer.name == self.last:
            return torch.full_like(values, math.inf)
        present = self.units(layer.mask.view(layer.shape))
        best = values.masked_fill(~present, -math.inf).argmax()
        return values.index_fill(0, best, math.inf)


class FanIn(Unstructured):
    """Constant fan-in: each output has the same number of inputs (SRigL, arXiv 2305.02299).

    A unit is a weight. A layer that may keep n weights keeps floor(n / outputs) of each row, at
    least one. A drop looks at the whole layer, and growth fills each row up again.
    """

    grouped: ClassVar[bool] = True

    def suits(self, spec: MethodSpec) -> None:
        """Refuse what would let layers or rows compete, as their counts are bound."""
        for dial, allowed in (
            ("scope", "layer"), ("initial_scope", "layer"), ("drop_scope", "layer"),
            ("grow_scope", "layer"), ("redistribute", None), ("also", None),
            ("initial_shuffle", False),
        ):  # fmt: skip
            value = getattr(spec, dial)
            if value != allowed:
                why = "with a constant fan-in the number of weights of each row is given"
                raise bad_value(f"method.{dial}", value, why)
        if spec.regrow == "never":
            why = "with a constant fan-in a row may have no other place to grow at than those"
            raise bad_value("method.regrow", spec.regrow, why)

    def count(self, shape: Shape, weights: int) -> int:
        """Weights of all rows together, the same number in each."""
        return shape[0] * max(1, weights // shape[0])

    def best(self, score: Score, layer: Layer, among: Tensor, count: int) -> Tensor:
        """The best of each row, as many in each."""
        each = torch.full((layer.shape[0],), count // layer.shape[0], device=among.device)
        return best_of_rows(score(layer), among, each)

    def grow(self, score: Score, layer: Layer, free: Tensor, kept: Tensor, count: int) -> Tensor:
        """The best of each row, as many as it lacks."""
        rows = layer.shape[0]
        there = kept.view(rows, -1).sum(1)
        return best_of_rows(score(layer), free, (int(there.sum()) + count) // rows - there)


def best_of_rows(score: Tensor, among: Tensor, each: Tensor) -> Tensor:
    """Flat positions of the highest scores of each row; of equal ones the lower index.

    Args:
        score: flat, of a whole layer; NaN counts as minus infinity.
        among: bool, flat: those that may be chosen.
        each: how many of each row, (rows,).
    """
    rows = each.numel()
    allowed = among.view(rows, -1)
    values = score.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf).view(rows, -1)
    order = values.sort(dim=1, descending=True, stable=True).indices
    order = order.gather(1, (~allowed).gather(1, order).sort(dim=1, stable=True).indices)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, places)
    return positions((rank < each[:, None]) & allowed)
