"""DSnoT (Zhang 2023, arXiv 2310.08915; code zyxxmu/DSnoT): swaps without training.

A row's expected output error is eps = sum over its pruned j of c_j, c_j = W_j E[x_j]. Each cycle
a pruned weight comes back and a kept one goes, so that eps gets nearer to 0: with eps > 0 the
pruned weight with the largest c_j / Var(x_j)^p, else that with the smallest; and in its place the
kept weight of the least |W_j| ||x_j|| whose c has the other sign than eps (with N:M the least
important one of the same group). A row is done when |eps| is at most the threshold, when the swap
would turn the sign of eps, or when there is none left to swap. All rows go at once.

Paper and code: the paper ends a row when the sign turns, and all layers take part; the code's
default has no such test (``method.swap_sign=false``) and leaves MLPs out
(``method.swap_skip=["*.mlp.*"]``, ``["*.fc*"]`` for OPT). Its threshold of 0.1 is in units of the
sum over a sequence (``swap_unit: sum``, here too), so that it depends on the length of the
calibration sequences; ``mean`` does not. Differs from the code on purpose: where candidates run
out the row is done (there pointers run on into weights that are no candidates), and a variance of
0 is raised to the smallest number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsebench.llm.choose import Pattern, lowest
from sparsebench.llm.scores import Weights, wanda
from sparsebench.sparsity.scores import needs


@dataclass
class Queue:
    """Candidates of all rows, best first, and how many of each row's are used.

    Attributes:
        order: (rows, length) positions in the row.
        ends: (rows) how many candidates a row has.
        used: (rows) how many are taken.
    """

    order: Tensor
    ends: Tensor
    used: Tensor

    @classmethod
    def of(cls, score: Tensor, among: Tensor, most: int) -> Queue:
        """The ``most`` lowest of each row among some, in ascending order, ties by index."""
        ends = among.sum(1)
        length = max(1, min(most, int(ends.max())))
        score = score.masked_fill(~among, torch.inf)
        first = lowest(score, length).nonzero()[:, 1].view(len(score), length)
        order = first.gather(1, score.gather(1, first).argsort(dim=1, stable=True))
        return cls(order, ends.clamp(max=length), torch.zeros_like(ends))

    def next(self) -> Tensor:
        """The next candidate of each row; any position where :meth:`left` is false."""
        at = self.used.clamp(max=self.order.shape[1] - 1)
        return self.order.gather(1, at.unsqueeze(1)).squeeze(1)

    @property
    def left(self) -> Tensor:
        """Bool (rows): whether there is a next one."""
        return self.used < self.ends


@needs("squares", "moments")
def dsnot(weights: Weights, kept: Tensor, pattern: Pattern, score: Tensor) -> Tensor:
    """Swap until the expected error of each row is small.

    Args:
        weights: of the layer, with its inputs' moments.
        kept: bool (outputs, inputs), the mask to start from.
        pattern: with N:M, swaps stay within groups and the sign is always tested.
        score: what the mask was chosen by; with N:M it says what goes.

    Returns:
        A mask with as many kept in each row (and group) as before.
    """
    spec, inputs = weights.spec, weights.inputs
    divisor = inputs.sequences if spec.swap_unit == "sum" else inputs.tokens
    c = weights.values * (inputs.sums / divisor).float()
    least = torch.finfo(torch.float32).tiny
    growth = c / inputs.variance.clamp(min=least).pow(spec.swap_power)
    most = min(spec.swap_cycles, kept.shape[1])
    if most == 0 or kept.all():
        return kept
    sign_test = spec.swap_sign or pattern.nm is not None
    eps = (c * ~kept).sum(1)
    # While a row's eps keeps its sign, it goes one way alone, and needs half of the queues.
    way = torch.where(eps > 0, -1.0, 1.0).unsqueeze(1)
    ways = (way, way) if sign_test else (-torch.ones_like(way), torch.ones_like(way))
    grow = _both(ways, lambda way: Queue.of(growth * way, ~kept, most))
    pruned = (~kept).sum(1)
    drop: _InGroups | _InRows
    if pattern.nm:
        drop = _InGroups(score, kept, pattern.nm[1])
    else:
        importance, chosen = wanda(weights), kept
        drop = _InRows(*_both(ways, lambda way: Queue.of(importance, chosen & (c * way > 0), most)))
    swaps = torch.zeros_like(pruned)
    initial, live, kept = eps.sign(), torch.ones_like(eps, dtype=torch.bool), kept.clone()
    rows = torch.arange(len(eps), device=eps.device)
    for _ in range(spec.swap_cycles):
        positive = eps > 0
        back = torch.where(positive, grow[0].next(), grow[1].next())
        live &= swaps < pruned  # two queues meet
        live &= torch.where(positive, grow[0].left, grow[1].left)
        gone, there = drop.next(positive, back)
        live &= there & (eps.abs() > spec.swap_threshold)
        after = eps + c[rows, gone] - c[rows, back]
        if sign_test:
            live &= after.sign() == initial
        if not live.any():
            break
        grow[0].used += live & positive
        grow[1].used += live & ~positive
        drop.take(live, positive, gone)
        swaps += live
        kept[rows[live], back[live]] = True
        kept[rows[live], gone[live]] = False
        eps = torch.where(live, after, eps)
    return kept


def _both(ways: tuple[Tensor, Tensor], queue: Callable[[Tensor], Queue]) -> tuple[Queue, Queue]:
    """A queue of rows with eps above 0, and one of the others; the same where rows stay that."""
    first = queue(ways[0])
    return first, first if ways[0] is ways[1] else queue(ways[1])


@dataclass
class _InRows:
    """Kept weights that may go from a row: those with c below 0, and those above."""

    negative: Queue
    positive: Queue

    def next(self, positive: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
        """Which goes if eps is positive or not, and whether there is one."""
        gone = torch.where(positive, self.negative.next(), self.positive.next())
        return gone, torch.where(positive, self.negative.left, self.positive.left)

    def take(self, live: Tensor, positive: Tensor, gone: Tensor) -> None:
        """It is gone."""
        self.negative.used += live & positive
        self.positive.used += live & ~positive


class _InGroups:
    """Kept weights that may go from a group of M: the least of those that were kept at first."""

    def __init__(self, score: Tensor, kept: Tensor, m: int) -> None:
        self.score = score.masked_fill(~kept, torch.inf)
        self.m = m

    def next(self, positive: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
        """The least one of the group of what comes back, and whether there is one."""
        first = back - back % self.m
        group = first.unsqueeze(1) + torch.arange(self.m, device=back.device)
        found = self.score.gather(1, group)
        gone = first + found.argmin(1)
        return gone, torch.isfinite(found).any(1)

    def take(self, live: Tensor, positive: Tensor, gone: Tensor) -> None:
        """It is used."""
        rows = live.nonzero().squeeze(1)
        self.score[rows, gone[rows]] = torch.inf
