"""Parts of a labelled set with exact class shares."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsebench.data.seeding import generator
from sparsebench.errors import bad_value


def quotas(counts: Tensor, total: int) -> Tensor:
    """Share ``total`` out over classes of ``counts`` (int64 [K]) by largest remainder.

    Ties go to the lower class. The sum is exactly ``total``, no quota is above its count.
    """
    exact = counts * total
    size = int(counts.sum())
    shares, rest = exact // size, exact % size
    winners = torch.argsort(rest, descending=True, stable=True)[: total - int(shares.sum())]
    shares[winners] += 1
    return shares


def stratified(labels: Tensor, total: int, *seed: int | str) -> Tensor:
    """Choose ``total`` positions of ``labels`` (int64 [N]) with the set's class shares.

    Args:
        labels: class of each sample.
        total: how many, at most N.
        seed: parts of the seed. With equal seeds a smaller choice lies inside a larger one
            wherever its quota of a class is not larger.

    Returns:
        Sorted positions, int64 [total].
    """
    counts = torch.bincount(labels)
    shuffled = torch.randperm(len(labels), generator=generator(*seed))
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    classes = labels[by_class]
    place = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[classes]
    return by_class[place < quotas(counts, total)[classes]].sort().values


def others(chosen: Tensor, size: int) -> Tensor:
    """The positions below ``size`` that are not in ``chosen``, sorted."""
    left = torch.ones(size, dtype=torch.bool)
    left[chosen] = False
    return left.nonzero().flatten()


def amount(key: str, value: object, size: int) -> int:
    """Turn a share or a count of ``size`` samples into a count.

    Args:
        key: config key for messages.
        value: a float up to 1.0 is a share; an integer, or a larger float without a
            fraction (a typed config makes floats of integers), is a count.
        size: how many there are.

    Raises:
        UserError: neither of both, or more than there is.
    """
    allowed = f"a share between 0 and 1.0, or a count up to {size}, is needed"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise bad_value(key, value, allowed)
    if isinstance(value, float) and 0.0 <= value <= 1.0:
        return round(value * size)
    if not 0 <= value <= size or value != int(value):  # NaN fails the first
        raise bad_value(key, value, allowed)
    return int(value)
