"""Recommenders that score by the product of a user's and an item's vector."""

from __future__ import annotations

import math

from torch import Tensor, nn

from sparsebench.errors import bad_value
from sparsebench.models.common import scaled


class Factorisation(nn.Module):
    """Two embedding tables."""

    def __init__(self, users: int, items: int, dimensions: int, deviation: float) -> None:
        super().__init__()
        self.users = nn.Embedding(users, dimensions)
        self.items = nn.Embedding(items, dimensions)
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=deviation)

    def tables(self) -> tuple[Tensor, Tensor]:
        """Vectors of all users [users, dimensions] and of all items [items, dimensions]."""
        return self.users.weight, self.items.weight

    def forward(self, users: Tensor) -> Tensor:
        """Scores of all items, float [batch, items], for users int64 [batch]."""
        vectors, items = self.tables()
        return vectors[users] @ items.T


def matrix_factorisation(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    width: float = 1.0,
    dimensions: int = 64,
    deviation: float = 0.1,
) -> Factorisation:
    """Matrix factorisation (Koren et al. 2009) without biases, initialised as LightGCN's.

    Args:
        input_shape: (users,).
        num_classes: items.
        width: multiplies the dimensions.
        dimensions: length of a vector.
        deviation: of the normal initial values (0.1 in arXiv 2002.02126's code).

    Returns:
        The network, with tables ``users`` and ``items``.

    Raises:
        UserError: a dial out of range, or data that are no interactions.
    """
    if len(input_shape) != 1:
        raise bad_value("model", "matrix_factorisation", "its data are users and items")
    if type(dimensions) is not int or dimensions < 1:
        allowed = "a whole number of at least 1 is needed"
        raise bad_value("model.args.dimensions", dimensions, allowed)
    if not (isinstance(deviation, int | float) and 0 < deviation < math.inf):
        raise bad_value("model.args.deviation", deviation, "a number in (0, inf) is needed")
    return Factorisation(input_shape[0], num_classes, scaled(dimensions, width), deviation)
