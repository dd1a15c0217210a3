"""Structures: which patterns of zeros are allowed.

The engine counts, drops and grows *units*; a structure says what a unit is. For
unstructured sparsity it is one weight. A block structure would make a block one unit; an
N:M structure would keep the unit and override :meth:`Unstructured.keep`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsebench.sparsity.scores import Layer, Score
from sparsebench.sparsity.topk import topk_indices


class Unstructured:
    """Any weight may be absent: a unit is a weight."""

    def units(self, mask: Tensor) -> Tensor:
        """Which units are present, flat, from the mask of a layer."""
        return mask.reshape(-1)

    def elements(self, units: Tensor) -> Tensor:
        """Flat positions of the weights of some units."""
        return units

    def score(self, score: Score, layer: Layer, units: Tensor | None = None) -> Tensor:
        """Scores of units (of all if None)."""
        return score(layer if units is None else layer.at(units))

    def keep(self, scores: Tensor, count: int) -> Tensor:
        """Positions of the ``count`` best of the scores that an allowed pattern can keep."""
        return topk_indices(scores, count)

    def pick(self, score: Score, layer: Layer, occupied: Tensor, count: int) -> Tensor:
        """``count`` new units among those not occupied, the best scores first."""
        fast = getattr(score, "pick", None)
        if fast is not None:
            picked: Tensor = fast(layer, occupied, count)
            return picked
        return topk_indices(self.score(score, layer).masked_fill(occupied, -torch.inf), count)
