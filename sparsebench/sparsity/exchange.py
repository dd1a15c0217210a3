"""What an update drops, and how many units it drops and grows, in each layer or over all."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sparsebench.sparsity.scores import Layer, Score
from sparsebench.sparsity.spec import MethodSpec
from sparsebench.sparsity.structure import Unstructured
from sparsebench.sparsity.topk import compress, count, positions
from sparsebench.sparsity.updates import Counts, best, share_out, worst

Units = Mapping[str, Tensor]  # for each layer, bool over its units


def drop_counts(spec: MethodSpec, present: Mapping[str, Tensor], fraction: float) -> Counts:
    """Units to drop.

    Args:
        spec: the method's dials (scope, rounding, whether a unit may come back at once).
        present: for each layer, bool over its units.
        fraction: share of the units to drop, in (0, 1).
    """
    numbers = {name: count(units) for name, units in present.items()}
    room = {name: units.numel() - numbers[name] for name, units in present.items()}
    if spec.drop_scope == "global":
        return number_to_drop(spec, fraction, sum(numbers.values()), sum(room.values()))
    return {n: number_to_drop(spec, fraction, numbers[n], room[n]) for n in numbers}


def number_to_drop(spec: MethodSpec, fraction: float, number: int, room: int) -> int:
    """Units to drop of ``number``, where ``room`` are free: rounded as the method says."""
    exact = fraction * number
    if not math.isclose(exact, round(exact), rel_tol=1e-12):  # 0.3 * 10 is a whole number
        exact = math.ceil(exact) if spec.drop_rounding == "ceil" else math.floor(exact)
    return min(round(exact), room) if spec.regrow == "never" else round(exact)


def grow_counts(
    spec: MethodSpec,
    amounts: Mapping[str, int],
    shares: Mapping[str, float] | None,
    free: Mapping[str, Tensor],
) -> Counts:
    """Units to grow, as many as were dropped.

    Args:
        spec: the method's dials.
        amounts: units dropped in each layer.
        shares: in proportion to what growth is shared among layers; none: where they were.
        free: for each layer, bool over its units that may be grown.
    """
    total = sum(amounts.values())
    if spec.grow_scope == "global":
        return total
    if shares is None and spec.drop_scope == "layer":
        return amounts
    # by share, or after a drop that may have taken more of a layer than it has room for
    room = {name: count(mask) for name, mask in free.items()}
    return share_out(total, amounts if shares is None else shares, room)


def drop(
    spec: MethodSpec,
    layers: Mapping[str, Layer],
    present: Units,
    scores: tuple[Score, Score | None],
    counts: Counts,
    structure: Unstructured,
) -> dict[str, Tensor]:
    """The units that go: those of the lowest score, and a share of them by a second score.

    Args:
        spec: the method's dials, of which ``also_share`` counts.
        layers: what the scores look at.
        present: units that there are.
        scores: the first score, and the second if there is one.
        counts: how many go of each layer, or of all together.
        structure: what a unit is.

    Returns:
        For each layer, flat positions in ascending order.
    """
    first, second = scores
    if second is None:
        return worst(layers, present, first, counts, structure)
    stay = less(present, counts)
    left = without(spec, layers, present, (first, second), stay, structure)
    kept = best(layers, left, first, stay, structure)
    return {n: positions(units.index_fill(0, kept[n], False)) for n, units in present.items()}


def without(
    spec: MethodSpec,
    layers: Mapping[str, Layer],
    among: Units,
    scores: tuple[Score, Score],
    stay: Counts,
    structure: Unstructured,
) -> dict[str, Tensor]:
    """The units left when the second score has removed its share of what is to go.

    It chooses among those that the first score would keep when it removes the rest of them, so
    the two never spend their share on the same unit. A unit it holds at infinity it never
    removes; where it finds too few others, the first score removes the more.

    Args:
        spec: the method's dials, of which ``also_share`` counts.
        layers: what the scores look at.
        among: units to choose among.
        scores: the first score and the second.
        stay: how many stay in the end, of each layer or of all together.
        structure: what a unit is.
    """
    first, second = scores
    goes = less(among, stay)
    share = goes if isinstance(goes, int) else sum(goes.values())
    if share <= 0:
        return dict(among)
    own: Counts
    more: Counts
    if isinstance(goes, int) and isinstance(stay, int):
        own = _share(spec, goes)
        more = stay + own
    else:
        assert not isinstance(goes, int)
        assert not isinstance(stay, int)
        own = {name: _share(spec, number) for name, number in goes.items()}
        more = {name: stay[name] + own[name] for name in own}
    candidates = _marked(among, best(layers, among, first, more, structure))
    for name, layer in layers.items():
        candidates[name] &= structure.score(second, layer).isfinite()
    room = {name: count(units) for name, units in candidates.items()}
    if isinstance(own, int):
        own = min(own, sum(room.values()))
    else:
        own = {name: min(number, room[name]) for name, number in own.items()}
    gone = worst(layers, candidates, second, own, structure)
    return {name: units.index_fill(0, gone[name], False) for name, units in among.items()}


def less(units: Units, counts: Counts) -> Counts:
    """How many of some units are left, of each layer or of all, without so many of them."""
    numbers = {name: count(mask) for name, mask in units.items()}
    if isinstance(counts, int):
        return sum(numbers.values()) - counts
    return {name: number - counts[name] for name, number in numbers.items()}


def _share(spec: MethodSpec, number: int) -> int:
    return int(round(spec.also_share * number, 9))  # 0.29 x 100 is 29


def _marked(units: Units, chosen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bool over all units of each layer, true at those chosen."""
    return {n: torch.zeros_like(u).index_fill_(0, chosen[n], True) for n, u in units.items()}


def moves(
    spec: MethodSpec, present: Tensor, dropped: Tensor, grown: Tensor
) -> tuple[Tensor, Tensor]:
    """What vanishes and what appears in a layer when some units are dropped, then some grown.

    With ``regrow: keep`` a unit dropped and grown at once stays as it is, value and all.

    Args:
        spec: the method's dials.
        present: bool over the units, before the drop.
        dropped: flat positions.
        grown: flat positions.
    """
    if spec.regrow != "keep":
        return dropped, grown
    chosen = torch.zeros_like(present).index_fill(0, grown, True)
    return (
        compress(dropped, ~chosen.index_select(0, dropped)),
        compress(grown, ~present.index_select(0, grown)),
    )
