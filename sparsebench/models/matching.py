"""The width at which a model has as many weights as a sparse one: the small-dense baseline."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from sparsebench.errors import UserError

if TYPE_CHECKING:
    from torch import nn

NARROWEST = 1e-6  # one channel everywhere, for any model with fewer than 500,000 channels
# Two widths at which some layer gains a channel are further apart than this.
RESOLUTION = 1e-9


def matched_width(
    build_at: Callable[[float], nn.Module],
    target_weights: int,
    count: Callable[[nn.Module], int],
) -> float:
    """The width with the most weights that are not more than a target.

    Models are built on the meta device: no memory is taken and no random number is drawn.

    Args:
        build_at: builds the model of a width; its size must not shrink as the width grows.
        target_weights: number of weights not to exceed.
        count: number of weights of a model.

    Returns:
        The width, with the fewest decimals that give this very size.

    Raises:
        UserError: even the narrowest model has more weights than the target.
    """
    import torch

    def size(width: float) -> int:
        with torch.device("meta"):
            return count(build_at(width))

    low, high = NARROWEST, 1.0
    smallest = size(low)
    if smallest > target_weights:
        raise UserError(
            f"model.width: no width gives {target_weights} weights, "
            f"the narrowest model has {smallest} already"
        )
    reached = smallest
    while (above := size(high)) <= target_weights:
        if above == reached and high > 1:  # nothing in this model grows with the width
            return low
        low, high, reached = high, 2 * high, above
    while high - low > RESOLUTION * high:
        middle = (low + high) / 2
        if size(middle) <= target_weights:
            low = middle
        else:
            high = middle
    return _shortest(low, size)


def _shortest(width: float, size: Callable[[float], int]) -> float:
    """The number of fewest decimals, not above a width, that gives the same size."""
    exact = size(width)
    for decimals in range(9):
        cut: float = math.floor(width * 10**decimals) / 10**decimals
        if cut > 0 and size(cut) == exact:
            return cut
    return width
