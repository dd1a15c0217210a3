"""Masks from scores: which weights of a layer go, with exact counts and ties by index.

Of equal scores the lower index goes first, as a stable ascending sort has it. Quantised weights
have many equal values, so this decides masks (unlike in the rest of the package, where the lower
index stays, and whose N:M selection is used here on mirrored groups).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparsebench.errors import UserError
from sparsebench.sparsity.nm import top_n


@dataclass(frozen=True)
class Pattern:
    """How much of a layer goes, and among which weights they compete.

    Attributes:
        sparsity: share of zeros; with N:M, 0 leaves the layer dense.
        scope: ``layer``, ``row`` or ``columns`` (blocks of columns, over all rows).
        columns: width of such a block.
        nm: N and M: of every M consecutive inputs N stay.
        chosen: the mask itself, where it is settled already.
    """

    sparsity: float
    scope: str = "layer"
    columns: int = 128
    nm: tuple[int, int] | None = None
    chosen: Tensor | None = None

    def keep(self, score: Tensor) -> Tensor:
        """Bool mask of the weights that stay.

        Args:
            score: (outputs, inputs), higher is better.
        """
        if self.chosen is not None:
            return self.chosen
        if self.sparsity == 0:
            return torch.ones_like(score, dtype=torch.bool)
        if self.nm:
            return keep_nm(score, *self.nm)
        if self.scope == "row":
            return ~lowest(score, number(score.shape[1], self.sparsity))
        if self.scope == "columns":
            parts = torch.split(score, self.columns, dim=1)
            return torch.cat([Pattern(self.sparsity).keep(part) for part in parts], dim=1)
        flat = score.reshape(1, -1)
        return ~lowest(flat, number(flat.shape[1], self.sparsity)).view(score.shape)


def undivided(name: str, width: int, m: int) -> UserError:
    """What is said of a weight whose ``width`` inputs are no whole groups of ``m``."""
    return UserError(f"structure.m={m}: '{name}' has {width} inputs, which do not divide by {m}")


def number(weights: int, sparsity: float) -> int:
    """How many of some weights go: rounded down, and not by the noise of the product."""
    return math.floor(round(weights * sparsity, 6))


def lowest(score: Tensor, count: int) -> Tensor:
    """Bool mask of the ``count`` lowest of each row; of equal ones those of lower index.

    Args:
        score: (rows, entries).
        count: the same for all rows.
    """
    if count <= 0:
        return torch.zeros_like(score, dtype=torch.bool)
    threshold = _kth(score, count)
    below, equal = score < threshold, score == threshold
    missing = count - below.sum(1, keepdim=True)
    if bool((equal.sum(1, keepdim=True) > missing).any()):
        equal &= equal.cumsum(1) <= missing
    return below | equal


def _kth(score: Tensor, count: int) -> Tensor:
    """The ``count``-th lowest of each row (numpy finds it three times faster)."""
    if score.device.type == "cpu":
        placed = np.partition(score.numpy(), count - 1, axis=1)
        return torch.from_numpy(placed[:, count - 1 : count].copy())
    return score.kthvalue(count, dim=1, keepdim=True).values


def keep_nm(score: Tensor, n: int, m: int) -> Tensor:
    """Bool mask with the ``n`` highest of every ``m`` consecutive entries of a row."""
    mirrored = score.reshape(-1, m).flip(1)  # so that of equal ones the higher index stays
    return top_n(mirrored, n).flip(1).reshape(score.shape)
