"""Structures: which patterns of zeros are allowed.

The engine counts, drops and grows *units*; a structure says what a unit is. For
unstructured sparsity it is one weight. A block structure makes a block one unit; an
N:M structure keeps the unit and overrides :meth:`Unstructured.best` and ``worst``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from sparsebench.sparsity.masks import Masks
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.scores import Layer, Score
from sparsebench.sparsity.spec import DistributionSpec, MethodSpec, StructureSpec
from sparsebench.sparsity.topk import lowest_indices, topk_indices

Shape = tuple[int, ...]


class Unstructured:
    """Any weight may be absent: a unit is a weight.

    Attributes:
        grouped: whether units or their counts are bound to a pattern.
    """

    grouped: ClassVar[bool] = False

    def __init__(self, spec: StructureSpec | None = None) -> None:
        """Take the pattern's numbers.

        Args:
            spec: the options of the structure; single weights have none.
        """

    def suits(self, spec: MethodSpec) -> None:
        """Refuse parts of a method that make no sense with the pattern.

        Args:
            spec: the method's parts.

        Raises:
            UserError: naming the dial and the reason.
        """

    def check(self, shapes: Mapping[str, Shape], sparsity: float) -> None:
        """Refuse weights that the pattern does not fit.

        Args:
            shapes: of the sparse weights.
            sparsity: share of zeros asked for.

        Raises:
            UserError: naming the weight, its shape and what is allowed.
        """

    def distribution(self, given: DistributionSpec) -> DistributionSpec:
        """How much each layer keeps: as asked for, unless the pattern itself says it."""
        return given

    def note(self, shapes: Mapping[str, Shape]) -> str | None:
        """What the user should know of how the pattern fits these weights."""
        return None

    def count(self, shape: Shape, weights: int) -> int:
        """Number of units of a layer that should keep this many weights."""
        return weights

    def counts(self, shapes: Mapping[str, Shape], weights: Mapping[str, int]) -> dict[str, int]:
        """Number of units of each layer, in forward order, from the weights they should keep."""
        return {name: self.count(shapes[name], kept) for name, kept in weights.items()}

    def together(self, units: Mapping[str, int], sparsity: float) -> int:
        """Number of units that all layers keep where they compete, from those of each layer."""
        return round((1.0 - sparsity) * sum(units.values()))

    def settle(self, state: TrainState) -> None:
        """Weights or masks have changed: bring what else hangs on the pattern into line."""

    def forecast(self, shapes: Mapping[str, Shape], weights: Mapping[str, int]) -> dict[str, int]:
        """Connections that each layer will have, from those it should keep."""
        return dict(weights)

    def units(self, mask: Tensor) -> Tensor:
        """Which units are present, flat, from the mask of a layer."""
        return mask.reshape(-1)

    def present(self, masks: Masks) -> dict[str, Tensor]:
        """For each layer, which units exist."""
        return {name: self.units(mask) for name, mask in masks.items()}

    def elements(self, units: Tensor, shape: Shape) -> Tensor:
        """Flat positions of the weights of some units (flat positions among the units)."""
        return units

    def best(self, score: Score, layer: Layer, among: Tensor, count: int) -> Tensor:
        """Flat positions, ascending, of the ``count`` best of some units (a bool mask)."""
        fast = getattr(score, "pick", None)
        if fast is not None:
            picked: Tensor = fast(layer, among, count)
            return picked
        return topk_indices(self.score(score, layer), count, among)

    def grow(self, score: Score, layer: Layer, free: Tensor, kept: Tensor, count: int) -> Tensor:
        """As :meth:`best` among the free units, where some others (bool) are there already."""
        return self.best(score, layer, free, count)

    def worst(self, score: Score, layer: Layer, among: Tensor, count: int) -> Tensor:
        """Flat positions, ascending, of the ``count`` worst of some units (a bool mask)."""
        return lowest_indices(self.score(score, layer), count, among)

    def score(self, score: Score, layer: Layer) -> Tensor:
        """Scores of all units of a layer."""
        return score(layer)
