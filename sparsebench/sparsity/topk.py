"""Exact selection of the k largest: ties by index, NaN last, fast on large tensors."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_SAMPLE = 8192  # scores looked at to guess the threshold
_LARGE = 1 << 15  # below this a plain selection is as fast


def topk_indices(score: Tensor, k: int, among: Tensor | None = None) -> Tensor:
    """Indices of the ``k`` largest entries, in ascending order of index.

    Of equal scores the lower index wins; NaN counts as minus infinity.

    Args:
        score: any shape; read as flat.
        k: how many, from 0 to the number of entries to choose among.
        among: bool, of the same size: only these entries are chosen; default is all.

    Returns:
        ``k`` int64 indices into the flat tensor.
    """
    return _extreme(score.detach().reshape(-1), k, among, 1)


def lowest_indices(score: Tensor, k: int, among: Tensor | None = None) -> Tensor:
    """Indices of the ``k`` smallest entries, ascending: just those that a top-k leaves out.

    Of equal scores the higher index is taken; NaN counts as minus infinity. Arguments as
    :func:`topk_indices`.
    """
    return _extreme(score.detach().reshape(-1), k, among, -1)


def topk_mask(score: Tensor, k: int) -> Tensor:
    """Boolean mask, of the shape of ``score``, of its ``k`` largest entries."""
    mask = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    return mask.index_fill(0, topk_indices(score, k), True).view(score.shape)


def positions(mask: Tensor) -> Tensor:
    """Flat positions of the true entries, ascending (numpy finds them several times faster)."""
    flat = mask.reshape(-1)
    if flat.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(flat.numpy()))
    return flat.nonzero().view(-1)


def compress(values: Tensor, mask: Tensor) -> Tensor:
    """The flat values where the mask is true, in order."""
    return values.index_select(0, positions(mask))


def count(mask: Tensor) -> int:
    """Number of true entries (numpy counts them several times faster)."""
    if mask.device.type == "cpu":
        return int(np.count_nonzero(mask.numpy()))
    return int(torch.count_nonzero(mask))


def _extreme(flat: Tensor, k: int, among: Tensor | None, sign: int) -> Tensor:
    """Ascending positions of the ``k`` largest (``sign`` 1) or smallest (-1) of those allowed."""
    allowed = torch.ones_like(flat, dtype=torch.bool) if among is None else among.reshape(-1)
    room = count(allowed)
    if not 0 <= k <= room:
        raise ValueError(f"k={k} of {room} scores")
    if k == 0 or k == room:
        return positions(allowed)[:k]
    low, high = _bracket(flat, allowed, room, k / room, sign)
    where = positions(allowed & _not_below(flat, low, sign))
    values = _ordered(flat.index_select(0, where), sign)
    above = count(values > high)
    if not above < k <= count(values >= low):  # a bad guess costs time, never exactness
        where, high, above = positions(allowed), math.inf, 0
        values = _ordered(flat.index_select(0, where), sign)
    threshold = _kth(values if high == math.inf else compress(values, values <= high), k - above)
    chosen = values > threshold
    missing = k - count(chosen)
    ties = positions(values == threshold)
    ties = ties[:missing] if sign > 0 else ties[ties.numel() - missing :]
    return compress(where, chosen.index_fill_(0, ties, True))


def _ordered(values: Tensor, sign: int) -> Tensor:
    """``sign * values`` after NaN became minus infinity."""
    return sign * values.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)


def _not_below(flat: Tensor, low: float, sign: int) -> Tensor:
    """Where ``sign * flat >= low``, or NaN (numpy compares floats several times faster)."""
    if flat.device.type == "cpu" and flat.dtype in (torch.float32, torch.float64):
        compare = np.less if sign > 0 else np.greater
        return torch.from_numpy(~compare(flat.numpy(), sign * low))
    return ~(flat < low if sign > 0 else flat > -low)


def _kth(values: Tensor, k: int) -> Tensor:
    """The ``k``-th largest value."""
    largest = values.max()
    if values.min() == largest:  # many equal scores would make a selection slow
        return largest
    return values.kthvalue(values.numel() - k + 1).values


def _bracket(
    flat: Tensor, allowed: Tensor, room: int, share: float, sign: int
) -> tuple[float, float]:
    """Two values that very likely have the threshold between them, from a strided sample.

    Four standard deviations of its rank in the sample to either side; no guess on small tensors.
    """
    if flat.numel() < _LARGE:
        return -math.inf, math.inf
    step = room // _SAMPLE | 1  # odd: not the same few columns of a matrix in each row
    sample = _ordered(compress(flat[::step], allowed[::step]), sign)
    size = sample.numel()
    margin = 4.0 * math.sqrt(size * share * (1.0 - share)) + 8.0
    first, last = math.floor(size * share - margin), math.ceil(size * share + margin)
    low = float(sample.kthvalue(size - last + 1).values) if last <= size else -math.inf
    high = float(sample.kthvalue(size - first + 1).values) if first >= 1 else math.inf
    return low, high
