"""SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774; code IST-DASLab/sparsegpt).

Columns are settled from left to right: a column's pruned weights leave an error, and the columns
after it make up for it as the inverse Hessian of the layer's inputs says (OBS). Masks are chosen
in blocks of columns, among all rows of a block, on the weights as updated so far.

Differs from the code on purpose: exactly ``floor(R B s)`` weights of a block of R x B go (there
those at or below a threshold, at least one more); a singular Hessian is damped more, and said so.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparsebench.llm.choose import Pattern, keep_nm
from sparsebench.llm.scores import Weights
from sparsebench.sparsity.scores import needs

#: From scores of some columns and the first's number to the mask of those that stay.
Choose = Callable[[Tensor, int], Tensor]


@needs("gram")
def sparsegpt(
    weights: Weights, pattern: Pattern, chosen: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Prune a layer, the kept weights making up for what goes.

    Args:
        weights: of the layer, with its inputs' Gram matrix.
        pattern: what is chosen; of its scopes ``columns`` is the published one.
        chosen: a mask (outputs, inputs) to update for, chosen elsewhere.

    Returns:
        The new weight and the mask, both (outputs, inputs).
    """
    inputs, spec = weights.inputs, weights.spec
    if pattern.sparsity == 0 and chosen is None:
        return weights.values, torch.ones_like(weights.values, dtype=torch.bool)
    factor = inputs.factor(spec.damping, weights.name)
    # A copy by columns, which lie together in memory then.
    w = weights.values.t().clone(memory_format=torch.contiguous_format)
    w[inputs.dead()] = 0.0
    kept = torch.empty_like(w, dtype=torch.bool)
    width = _block(spec.columns, pattern)
    for first in range(0, len(w), width):
        block = slice(first, first + width)
        mask = None if chosen is None else chosen[:, block].t()
        errors = _settle(w[block], factor[block, block], kept[block], pattern, mask)
        w[first + width :].addmm_(factor[block, first + width :].t(), errors, alpha=-1)
    return w.t().contiguous(), kept.t().contiguous()


def _block(columns: int, pattern: Pattern) -> int:
    """Columns settled at a time: whole groups of M."""
    m = pattern.nm[1] if pattern.nm else 1
    return max(columns // m, 1) * m


def _settle(
    w: Tensor, factor: Tensor, kept: Tensor, pattern: Pattern, chosen: Tensor | None
) -> Tensor:
    """Choose and settle a block of columns in place; its errors, by column.

    Args:
        w: (columns, outputs), changed.
        factor: the block's part of the upper factor.
        kept: (columns, outputs), filled.
        pattern: what is chosen.
        chosen: (columns, outputs) if it is chosen already.
    """
    errors = torch.empty_like(w)
    diagonal = factor.diagonal()
    if chosen is not None:
        kept.copy_(chosen)
    elif not pattern.nm:
        score = (w / diagonal.unsqueeze(1)).square().t().contiguous()
        scope = "row" if pattern.scope == "row" else "layer"
        kept.copy_(Pattern(pattern.sparsity, scope).keep(score).t())
    for j in range(len(w)):
        if chosen is None and pattern.nm and j % pattern.nm[1] == 0:
            n, m = pattern.nm
            score = (w[j : j + m] / diagonal[j : j + m].unsqueeze(1)).square()
            kept[j : j + m] = keep_nm(score.t().contiguous(), n, m).t()
        errors[j] = w[j].masked_fill(kept[j], 0.0) / diagonal[j]
        w[j].masked_fill_(~kept[j], 0.0)
        w[j + 1 :].addr_(factor[j, j + 1 :], errors[j], alpha=-1)
    return errors
