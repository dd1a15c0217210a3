"""Scores that look at the signs of weights."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsebench.sparsity.scores import Layer, needs
from sparsebench.sparsity.topk import positions


def signwise(layer: Layer) -> Tensor:
    """Rank by size among the connections of one sign, as a share of them: in (0, 1], 0 for zeros.

    Dropping the lowest takes the same fraction of the positive and of the negative connections,
    those closest to zero, as SET was first described (arXiv 1707.04780). Dropping by magnitude,
    which most code calls SET, takes more of the sign whose weights are smaller. A connection that
    is exactly zero goes first.

    The author's code cuts at two sorted values and drops these as well, so up to two connections
    more than the fraction says; here the number of each layer is exact, and that of each sign
    within one of the fraction.
    """
    scores = torch.zeros_like(layer.weight)
    for size in (layer.weight.clamp(min=0.0), (-layer.weight).clamp(min=0.0)):
        where = positions((size > 0.0) & layer.mask)
        order = size.index_select(0, where).argsort(stable=True)
        ranks = torch.arange(1, where.numel() + 1, dtype=scores.dtype, device=scores.device)
        scores[where[order]] = ranks / max(where.numel(), 1)
    return scores


@needs("sign")
def aligned(layer: Layer) -> Tensor:
    """The weight times the sign that its place was given: negative once it has crossed zero."""
    return layer.weight * layer["sign"]
