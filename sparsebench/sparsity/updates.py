"""Choosing connections within and across layers: counts are exact whatever the scores."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparsebench.sparsity.scores import Layer, Score
from sparsebench.sparsity.structure import Unstructured
from sparsebench.sparsity.topk import lowest_indices, positions, topk_indices

Counts = Mapping[str, int] | int  # of each layer, or of all layers together


def best(
    layers: Mapping[str, Layer],
    among: Mapping[str, Tensor],
    score: Score,
    counts: Counts,
    structure: Unstructured,
    kept: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The units of the highest scores.

    Args:
        layers: what the score looks at.
        among: for each layer, bool over its units, flat: those that may be chosen.
        score: higher is better.
        counts: how many of each layer, or one number for which all layers compete.
        structure: what a unit is.
        kept: where units are grown, those that stay beside them; the score sees no others.

    Returns:
        For each layer, flat positions in ascending order.
    """
    if kept is not None:
        stay = {n: structure.elements(positions(kept[n]), v.shape) for n, v in layers.items()}
        layers = {n: layer.only(stay[n]) for n, layer in layers.items()}
    if not isinstance(counts, int):
        if kept is None:
            return {n: structure.best(score, v, among[n], counts[n]) for n, v in layers.items()}
        return {
            n: structure.grow(score, v, among[n], kept[n], counts[n]) for n, v in layers.items()
        }
    scores = [structure.score(score, layer) for layer in layers.values()]
    together = torch.cat([among[name] for name in layers])
    return _split(topk_indices(torch.cat(scores), counts, together), among)


def worst(
    layers: Mapping[str, Layer],
    among: Mapping[str, Tensor],
    score: Score,
    counts: Counts,
    structure: Unstructured,
) -> dict[str, Tensor]:
    """The units of the lowest scores: just those that :func:`best` leaves out; as there."""
    if not isinstance(counts, int):
        return {n: structure.worst(score, v, among[n], counts[n]) for n, v in layers.items()}
    scores = [structure.score(score, layer) for layer in layers.values()]
    together = torch.cat([among[name] for name in layers])
    return _split(lowest_indices(torch.cat(scores), counts, together), among)


def _split(chosen: Tensor, layers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Ascending positions into layers put end to end, as positions into each."""
    result, offset = {}, 0
    for name, units in layers.items():
        end = offset + units.numel()
        result[name] = chosen[(chosen >= offset) & (chosen < end)] - offset
        offset = end
    return result


def one_way(wanted: Mapping[str, int], current: Mapping[str, int]) -> dict[str, int]:
    """``wanted``, changed so that no layer loses where the total grows, nor gains where it falls.

    Rounding by largest remainders may give a layer one weight more at a smaller total, and what
    is pruned must stay pruned; other layers make up for it, and the total is that of ``wanted``.
    """
    falls = sum(wanted.values()) <= sum(current.values())
    bound, sign = (min, 1) if falls else (max, -1)
    counts = {name: bound(count, current[name]) for name, count in wanted.items()}
    gaps = {name: abs(current[name] - count) for name, count in counts.items()}
    back = share_out(abs(sum(wanted.values()) - sum(counts.values())), gaps, gaps)
    return {name: count + sign * back[name] for name, count in counts.items()}


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
        highest = max(weight.values())  # shares may be as small as floats get
        relative = {n: weight[n] / highest for n in open_}
        scale = left / sum(relative.values())
        part = {n: relative[n] * scale for n in open_}
        whole = {n: int(part[n]) for n in open_}
        by_rest = sorted(open_, key=lambda n: whole[n] - part[n])
        for name in by_rest[: left - sum(whole.values())]:
            whole[name] += 1
        for name in open_:
            given[name] += min(whole[name], room[name] - given[name])
    return given
