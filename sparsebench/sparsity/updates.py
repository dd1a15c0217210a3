"""Choosing connections within and across layers: counts are exact whatever the scores."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparsebench.sparsity.scores import Layer, Score
from sparsebench.sparsity.structure import Unstructured
from sparsebench.sparsity.topk import topk_indices

Counts = Mapping[str, int] | int  # of each layer, or of all layers together


def keep_best(scores: Mapping[str, Tensor], counts: Counts, structure: Unstructured) -> dict[str, Tensor]:
    """Positions of the best scores.

    Args:
        scores: for each layer, a flat tensor.
        counts: how many in each layer, or one number for which all layers compete.
        structure: what an allowed pattern can keep, within a layer.

    Returns:
        For each layer, positions into its scores, ascending.
    """
    if not isinstance(counts, int):
        return {name: structure.keep(score, counts[name]) for name, score in scores.items()}
    best = topk_indices(torch.cat([s.float() for s in scores.values()]), counts)
    result, offset = {}, 0
    for name, score in scores.items():
        end = offset + score.numel()
        result[name] = best[(best >= offset) & (best < end)] - offset
        offset = end
    return result


def drop_worst(
    layers: Mapping[str, Layer],
    active: Mapping[str, Tensor],
    score: Score,
    counts: Counts,
    structure: Unstructured,
) -> dict[str, Tensor]:
    """Which of the active units go: those of the lowest scores.

    Args:
        layers: what the score looks at.
        active: flat positions of the units of each layer.
        score: higher stays.
        counts: how many go, of each layer or over all.
        structure: what a unit is.

    Returns:
        For each layer, a bool tensor over ``active``: true where the unit goes.
    """
    scores = {n: structure.score(score, layers[n], positions) for n, positions in active.items()}
    if isinstance(counts, int):
        stay: Counts = sum(s.numel() for s in scores.values()) - counts
    else:
        stay = {name: s.numel() - counts[name] for name, s in scores.items()}
    gone = {}
    for name, kept in keep_best(scores, stay, structure).items():
        gone[name] = torch.ones_like(active[name], dtype=torch.bool)
        gone[name][kept] = False
    return gone


def grow_best(
    layers: Mapping[str, Layer],
    occupied: Mapping[str, Tensor],
    score: Score,
    counts: Counts,
    structure: Unstructured,
) -> dict[str, Tensor]:
    """Positions of new units, among those not occupied.

    Args:
        layers: what the score looks at.
        occupied: bool, flat: units that can't be grown.
        score: higher is grown first.
        counts: how many, of each layer or over all.
        structure: what a unit is.

    Returns:
        For each layer, flat positions in ascending order.
    """
    if not isinstance(counts, int):
        return {n: structure.pick(score, v, occupied[n], counts[n]) for n, v in layers.items()}
    scores = {
        n: structure.score(score, v).masked_fill(occupied[n], -torch.inf) for n, v in layers.items()
    }
    return keep_best(scores, counts, structure)


def share_out(total: int, shares: Mapping[str, float], room: Mapping[str, int]) -> dict[str, int]:
    """Whole numbers in proportion to ``shares``, none above its ``room``, summing to ``total``.

    What does not fit goes to the layers with room left, again by share (by room where the
    shares left are all zero).

    Raises:
        ValueError: ``total`` is more than all the room.
    """
    if total > sum(room.values()):
        raise ValueError(f"{total} connections for {sum(room.values())} free positions")
    given = dict.fromkeys(shares, 0)
    while left := total - sum(given.values()):
        open_ = [n for n in shares if given[n] < room[n]]
        weight = {n: shares[n] for n in open_}
        if sum(weight.values()) <= 0:
            weight = {n: float(room[n] - given[n]) for n in open_}
        scale = left / sum(weight.values())
        whole = {n: int(weight[n] * scale) for n in open_}
        by_rest = sorted(open_, key=lambda n: whole[n] - weight[n] * scale)
        for name in by_rest[: left - sum(whole.values())]:
            whole[name] += 1
        for name in open_:
            given[name] += min(whole[name], room[name] - given[name])
    return given
