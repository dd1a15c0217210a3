"""Structures: which patterns of zeros are allowed.

The engine counts, drops and grows *units*; a structure says what a unit is. For
unstructured sparsity it is one weight. A block structure would make a block one unit; an
N:M structure would keep the unit and override :meth:`Unstructured.best` and ``worst``.
"""

from __future__ import annotations

from torch import Tensor

from sparsebench.sparsity.scores import Layer, Score
from sparsebench.sparsity.topk import lowest_indices, topk_indices


class Unstructured:
    """Any weight may be absent: a unit is a weight."""

    def units(self, mask: Tensor) -> Tensor:
        """Which units are present, flat, from the mask of a layer."""
        return mask.reshape(-1)

    def elements(self, units: Tensor) -> Tensor:
        """Flat positions of the weights of some units."""
        return units

    def best(self, score: Score, layer: Layer, among: Tensor, count: int) -> Tensor:
        """Flat positions, ascending, of the ``count`` best of some units (a bool mask)."""
        fast = getattr(score, "pick", None)
        if fast is not None:
            picked: Tensor = fast(layer, among, count)
            return picked
        return topk_indices(self.score(score, layer), count, among)

    def worst(self, score: Score, layer: Layer, among: Tensor, count: int) -> Tensor:
        """Flat positions, ascending, of the ``count`` worst of some units (a bool mask)."""
        return lowest_indices(self.score(score, layer), count, among)

    def score(self, score: Score, layer: Layer) -> Tensor:
        """Scores of all units of a layer."""
        return score(layer)
