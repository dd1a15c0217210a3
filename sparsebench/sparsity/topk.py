"""Exact selection of the k largest: ties by index, NaN last, fast on large tensors."""

from __future__ import annotations

import torch
from torch import Tensor

_SAMPLE = 8192  # scores looked at to guess a threshold
_LARGE = 1 << 16  # below this a plain selection is as fast


def topk_indices(score: Tensor, k: int) -> Tensor:
    """Indices of the ``k`` largest entries, in ascending order of index.

    Of equal scores the lower index wins; NaN counts as minus infinity.

    Args:
        score: any shape; read as flat.
        k: how many, 0 <= k <= score.numel().

    Returns:
        ``k`` int64 indices into the flat tensor.
    """
    flat = score.reshape(-1)
    if not 0 <= k <= flat.numel():
        raise ValueError(f"k={k} of {flat.numel()} scores")
    if k == 0 or k == flat.numel():
        return torch.arange(k, device=flat.device)
    if flat.isnan().any():
        flat = flat.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    candidates = _likely(flat, k)
    if candidates is None:
        return _select(flat, k)
    return candidates[_select(flat[candidates], k)]


def topk_mask(score: Tensor, k: int) -> Tensor:
    """Boolean mask, of the shape of ``score``, of its ``k`` largest entries."""
    mask = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    mask[topk_indices(score, k)] = True
    return mask.view(score.shape)


def _select(flat: Tensor, k: int) -> Tensor:
    threshold = flat.kthvalue(flat.numel() - k + 1).values
    above = flat > threshold
    missing = k - int(above.sum())
    above[(flat == threshold).nonzero().view(-1)[:missing]] = True
    return above.nonzero().view(-1)


def _likely(flat: Tensor, k: int) -> Tensor | None:
    """Indices that surely hold the k largest, or None where a guess would not pay.

    A threshold is guessed from a strided sample, low enough to let about twice the wanted
    share through; all above it are candidates. Too few, and the guess is dropped: the
    result is exact either way.
    """
    n = flat.numel()
    if n < _LARGE or k * 4 > n:
        return None
    sample = flat[:: n // _SAMPLE]
    rank = int(sample.numel() * k / n * 1.3) + 24
    if rank >= sample.numel():
        return None
    threshold = sample.kthvalue(sample.numel() - rank).values
    candidates = (flat >= threshold).nonzero().view(-1)
    return candidates if k <= candidates.numel() < n // 2 else None
