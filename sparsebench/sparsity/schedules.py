"""Values over the update window, as functions of progress in [0, 1]."""

from __future__ import annotations

import math


def constant(progress: float) -> float:
    """The target from the first step on."""
    return 1.0


def once(progress: float) -> float:
    """All at the start of the window (one-shot pruning)."""
    return 1.0 if progress >= 0 else 0.0


def cubic(progress: float) -> float:
    """Fast at first, slow at the end: 1 - (1 - p)^3 (Zhu & Gupta, arXiv 1710.01878, eq. 1)."""
    return 1.0 - (1.0 - min(max(progress, 0.0), 1.0)) ** 3


def alternating(number: int, last: int) -> float:
    """Dense and sparse by turns (AC/DC, arXiv 2106.12379): odd updates prune, even ones fill up.

    The last update prunes, and the phase before it is dense: twice as long as the others if
    ``last`` is even, as in the paper's ImageNet runs.

    Args:
        number: of the update, from 1; 0 and less before the first.
        last: number of the last update.
    """
    if number >= last:
        return 1.0
    return 1.0 if number > 0 and number % 2 == 1 and number != last - 1 else 0.0


alternating.by_phases = True  # type: ignore[attr-defined]  # functions take attributes


def linear(progress: float) -> float:
    """Straight line from 0 to 1."""
    return min(max(progress, 0.0), 1.0)


def geometric(progress: float) -> float:
    """Straight line in the logarithm of the density: each update removes the same share.

    Of what is left, that is, as in iterative magnitude pruning (arXiv 1803.03635): from dense to
    sparsity s in n updates, 1 - (1 - s)^(1/n) each time.
    """
    return min(max(progress, 0.0), 1.0)


geometric.of_log_density = True  # type: ignore[attr-defined]  # functions take attributes


def cosine_decay(progress: float) -> float:
    """Half a cosine from 1 to 0 (RigL, arXiv 1911.11134, eq. 1)."""
    return 0.5 * (1.0 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


def constant_decay(progress: float) -> float:
    """No decay (SET, arXiv 1707.04780)."""
    return 1.0


def linear_decay(progress: float) -> float:
    """Straight line from 1 to 0."""
    return 1.0 - min(max(progress, 0.0), 1.0)


def staged_decay(progress: float) -> float:
    """All until three quarters of the window, then half, and nothing at its end.

    MEST (arXiv 2110.14032): with a window of 120 of 160 epochs, its changes are at epochs 90 and
    120.
    """
    return 1.0 if progress < 0.75 else 0.5 if progress < 1.0 else 0.0
