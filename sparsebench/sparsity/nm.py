"""N:M sparsity: of every M weights in a row along the inputs, N stay.

The groups are those of NVIDIA's sparse tensor cores (arXiv 2104.08378) and of SR-STE (arXiv
2102.04010): M consecutive inputs of a linear layer, M consecutive input channels at one place of
a kernel. A unit is one weight; what is chosen is chosen group by group, and of equal scores the
lower index stays.

* Sparsity is that of the pattern, 1 - N/M over the layers that fit; a distribution over layers
  has no say. Under a sparsity schedule all groups keep round(M x density) weights at a time, so
  4:4, 3:4, 2:4, and the sparsity that is asked for between is met as near as whole numbers allow.
* Drop and grow: the weights to drop are the lowest of the whole layer, and each group grows as
  many as it lost, so every group has its N again. A fixed number for each group would be none at
  all at 2:4 and a drop fraction of 0.3.
* A layer whose inputs do not divide by M stays dense (``misfit: skip``, the default; the first
  convolution of most networks), or is filled up with zeros that count among a group's M (``pad``,
  so a group with fewer than N weights stays whole), or is refused.

Differs on purpose from the official codes: theirs cut the flattened weight into groups, which
straddle rows where M does not divide them, and an unstable sort decides between equal weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from sparsebench.errors import UserError
from sparsebench.sparsity.nm_rules import check_method, check_numbers
from sparsebench.sparsity.scores import Layer, Score
from sparsebench.sparsity.spec import DistributionSpec, MethodSpec, StructureSpec
from sparsebench.sparsity.structure import Shape, Unstructured
from sparsebench.sparsity.topk import count as number_of
from sparsebench.sparsity.topk import positions

_PAIRWISE = 16  # up to this M comparing all pairs is faster than a selection


class NM(Unstructured):
    """N of every M weights along the input dimension."""

    grouped: ClassVar[bool] = True

    def __init__(self, spec: StructureSpec | None = None) -> None:
        """Take N, M and what to do with layers that do not divide.

        Raises:
            UserError: no pattern.
        """
        spec = spec or StructureSpec("nm", 2, 4)
        self.spec = spec
        check_numbers(spec, 0.0)
        assert spec.n is not None
        assert spec.m is not None
        self.n, self.m = spec.n, spec.m

    # --- what fits ---------------------------------------------------------------------------

    def suits(self, spec: MethodSpec) -> None:
        """Refuse what would break the groups."""
        check_method(spec)

    def distribution(self, given: DistributionSpec) -> DistributionSpec:
        """All layers alike: the pattern is the distribution."""
        return DistributionSpec("strict_uniform")

    def fits(self, shape: Shape) -> bool:
        """Whether a weight takes the pattern."""
        return self.spec.misfit == "pad" or shape[1] % self.size(shape) == 0

    def size(self, shape: Shape) -> int:
        """M, the size of a group, for a weight."""
        return self.m

    def check(self, shapes: Mapping[str, Shape], sparsity: float) -> None:
        """Refuse another sparsity than the pattern's, and weights that do not divide by M."""
        check_numbers(self.spec, sparsity)
        misfits = {name: shape for name, shape in shapes.items() if not self.fits(shape)}
        if not misfits or (self.spec.misfit == "skip" and len(misfits) < len(shapes)):
            return
        name, shape = next(iter(misfits.items()))
        none = len(misfits) == len(shapes)
        skip = "" if none else "skip leaves such layers dense, "
        raise UserError(
            f"structure.m={self.m}: {'no weight fits, such as' if none else 'the weight'} "
            f"'{name}' of shape {tuple(shape)}, whose {shape[1]} inputs do not divide by {self.m}; "
            f"structure.misfit={skip}pad fills them up with zeros"
        )

    def note(self, shapes: Mapping[str, Shape]) -> str | None:
        """Which weights stay dense, in a sentence."""
        dense = [name for name, shape in shapes.items() if not self.fits(shape)]
        if not dense:
            return None
        return f"dense, since their inputs do not divide by M={self.m}: {', '.join(dense)}"

    # --- counts ------------------------------------------------------------------------------

    def counts(self, shapes: Mapping[str, Shape], weights: Mapping[str, int]) -> dict[str, int]:
        """Weights of each layer: every group has the whole number nearest to the density."""
        density = sum(weights.values()) / sum(math.prod(shape) for shape in shapes.values())
        sizes = {name: self.size(shape) for name, shape in shapes.items()}
        return {
            name: self._total(shapes[name], min(max(round(m * density), 1), m))
            for name, m in sizes.items()
        }

    forecast = counts

    def _total(self, shape: Shape, n: int) -> int:
        """Weights of a layer with ``n`` in each group."""
        if not self.fits(shape):
            return math.prod(shape)
        full, rest = divmod(shape[1], self.size(shape))
        return math.prod(shape) // shape[1] * (full * n + min(n, rest))

    def _each(self, shape: Shape, total: int) -> int:
        """How many each group has, if a layer has ``total``."""
        for n in range(self.size(shape) + 1):
            if self._total(shape, n) == total:
                return n
        raise ValueError(f"{total} weights of {shape} are not the same number in each group")

    # --- choosing ----------------------------------------------------------------------------

    def best(self, score: Score, layer: Layer, among: Tensor, count: int) -> Tensor:
        """The best of each group, as many in each."""
        if count == among.numel() or not self.fits(layer.shape):
            return positions(among)
        scores = self._grouped(self.score(score, layer), among, layer.shape)
        return self._flat(top_n(scores, self._each(layer.shape, count)), layer.shape)

    def grow(self, score: Score, layer: Layer, free: Tensor, kept: Tensor, count: int) -> Tensor:
        """The best free ones of each group, as many as it lacks."""
        if count == 0:
            return positions(free)[:0]
        n = self._each(layer.shape, count + number_of(kept))
        m = self.size(layer.shape)
        there = groups(kept, layer.shape, m, False).sum(1, keepdim=True)
        room = groups(kept | free, layer.shape, m, False).sum(1, keepdim=True)
        scores = self._grouped(self.score(score, layer), free, layer.shape)
        return self._flat(top_n(scores, room.clamp(max=n) - there), layer.shape)

    def worst(self, score: Score, layer: Layer, among: Tensor, count: int) -> Tensor:
        """The worst of the whole layer; none of one that stays dense."""
        return super().worst(score, layer, among, count if self.fits(layer.shape) else 0)

    def _grouped(self, scores: Tensor, among: Tensor, shape: Shape) -> Tensor:
        """Scores by group, minus infinity for what may not be chosen; NaN is the lowest."""
        least = torch.finfo(scores.dtype).min
        finite = scores.detach().nan_to_num(nan=least, posinf=math.inf, neginf=least)
        if number_of(among) < among.numel():
            finite = finite.masked_fill(~among, -math.inf)
        return groups(finite, shape, self.size(shape), -math.inf)

    def _flat(self, chosen: Tensor, shape: Shape) -> Tensor:
        return positions(ungrouped(chosen, shape, self.size(shape)))


def groups(flat: Tensor, shape: Shape, m: int, fill: float | bool, dim: int = 1) -> Tensor:
    """A weight cut into groups along one dimension.

    Args:
        flat: the weight or its mask, flat.
        shape: of the weight.
        m: size of a group.
        fill: value in place of what a group lacks at the end.
        dim: along which groups run: 1 for inputs, 0 for outputs.

    Returns:
        (groups, m), those of one output, and of one place in its kernel, one after another.
    """
    moved = flat.reshape(shape).movedim(dim, -1)
    if lacking := -shape[dim] % m:
        end = moved.new_full((*moved.shape[:-1], lacking), fill)
        moved = torch.cat((moved, end), dim=-1)
    return moved.reshape(-1, m)


def ungrouped(grouped: Tensor, shape: Shape, m: int, dim: int = 1) -> Tensor:
    """Back from :func:`groups` to the flat weight."""
    padded = shape[dim] + -shape[dim] % m
    others = [size for place, size in enumerate(shape) if place != dim]
    moved = grouped.reshape(*others, padded)[..., : shape[dim]]
    return moved.movedim(-1, dim).reshape(-1)


def top_n(scores: Tensor, n: int | Tensor) -> Tensor:
    """The ``n`` highest of each row, exactly; of equal ones those of lower index.

    Args:
        scores: (groups, M); minus infinity is never chosen, and there is no NaN.
        n: one number, or one for each row (groups, 1).

    Returns:
        Bool, (groups, M).
    """
    if isinstance(n, int) and 16 * n <= scores.shape[1]:
        chosen = _highest(scores, n)
    elif scores.shape[1] <= _PAIRWISE:
        chosen = _rank(scores) < n
    else:
        chosen = _above(scores, n)
    if scores.numel() and scores.min() == -math.inf:  # rarely; the two lie crosswise in memory
        return chosen & (scores > -math.inf)
    return chosen


def _highest(scores: Tensor, n: int) -> Tensor:
    """The highest, ``n`` times over; quick where few stay."""
    left = scores.t().contiguous()
    numbers = torch.arange(len(left), dtype=torch.int16, device=scores.device).unsqueeze(1)
    chosen = torch.zeros_like(left, dtype=torch.bool)
    for _ in range(n):
        best, where = left[0].clone(), torch.zeros_like(left[0], dtype=torch.int16)
        for j in range(1, len(left)):
            where.masked_fill_(left[j] > best, j)
            torch.maximum(best, left[j], out=best)
        found = numbers == where
        chosen |= found
        left.masked_fill_(found, -math.inf)
    return chosen.t()


def _rank(scores: Tensor) -> Tensor:
    """How many of its group each entry has before it; by columns, which lie apart in memory."""
    columns = scores.t().contiguous()
    behind = torch.arange(len(columns) - 1, -1, -1, dtype=torch.int8, device=scores.device)
    ranks = behind.unsqueeze(1).repeat(1, len(scores))  # as if all were lower than those behind
    for i in range(len(columns) - 1):
        first = (columns[i] >= columns[i + 1 :]).view(torch.int8)
        ranks[i] -= first.sum(0, dtype=torch.int8)
        ranks[i + 1 :] += first
    return ranks.t()


def _above(scores: Tensor, n: int | Tensor) -> Tensor:
    """Whatever is above the n-th value, and the first of those equal to it."""
    each = torch.as_tensor(n, device=scores.device).expand(len(scores), 1)
    most = max(int(each.max()), 1)
    threshold = scores.topk(most, dim=1).values.gather(1, (each - 1).clamp(min=0))
    above, equal = scores > threshold, scores == threshold
    left = each - above.sum(1, keepdim=True)
    return (above | (equal & (equal.cumsum(1) <= left))) & (each > 0)


def mask(weight: Tensor, n: int, m: int, dim: int = 1, *, pad: bool = False) -> Tensor:
    """Bool mask of the ``n`` largest of every ``m`` weights along a dimension, in one call.

    Args:
        weight: at least two dimensions.
        n: how many stay.
        m: size of a group.
        dim: 1 for groups of inputs (forward), 0 for groups of outputs (backward).
        pad: fill the dimension up if it does not divide by ``m``; otherwise all is true then.
    """
    shape = tuple(weight.shape)
    if shape[dim] % m and not pad:
        return torch.ones_like(weight, dtype=torch.bool)
    least = torch.finfo(weight.dtype).min
    size = weight.detach().abs().nan_to_num(nan=least, posinf=math.inf)
    chosen = top_n(groups(size, shape, m, -math.inf, dim), n)
    return ungrouped(chosen, shape, m, dim).view(shape)
