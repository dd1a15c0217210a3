"""Sparsity by the heavy tails of spectra (AlphaPruning, Lu 2024, arXiv 2410.10912).

Eigenvalues of W^T W of well trained weights have a power law as their tail; the smaller its
exponent, the heavier the tail, and the less goes. No data is needed. Code: haiquanlu/AlphaPruning.

Of the tail's length the code has several rules. ``half`` takes the upper half of the eigenvalues.
``peak``, which the published commands use, begins near the peak of their histogram (100 bins of
the logarithm): of all beginnings within 0.95 to 1.5 times the peak it takes that whose power law
fits best (Kolmogorov-Smirnov). The code compares the lower bound as a logarithm, by a slip as it
seems, so that all beginnings below 1.5 times the peak may win; here both bounds hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sparsebench.llm.ratios import Question

BINS = 100
#: Sparsity above which no block is brought, unless all are.
MOST = 0.99


def alpha(question: Question) -> dict[str, float]:
    """Blocks with lighter tails are sparser, around the total (AlphaPruning, arXiv 2410.10912)."""
    exponents: dict[int, list[float]] = {}
    sizes: dict[int, int] = {}
    for block in question.blocks:
        with block.loaded():
            for linear in block.linears:
                values = question.weights(linear).values
                found = exponent(torch.linalg.svdvals(values).square(), question.spec.tail)
                exponents.setdefault(linear.block, []).append(found)
                sizes[linear.block] = sizes.get(linear.block, 0) + values.numel()
    means = {number: math.fsum(some) / len(some) for number, some in exponents.items()}
    given = sparsities(means, sizes, question.sparsity, question.spec.tau)
    return {linear.name: given[linear.block] for linear in question.linears}


def exponent(eigenvalues: Tensor, tail: str = "half") -> float:
    """Exponent of the power law of the largest eigenvalues, by Hill's estimator.

    ``1 + k / sum of ln(l_i / l_0)``, l_0 being where the tail of k begins: the largest eigenvalue
    that is not in it with ``half``, the smallest that is in it with ``peak``.

    Args:
        eigenvalues: (n), not negative, in any order.
        tail: ``half`` or ``peak``.
    """
    least = torch.finfo(eigenvalues.dtype).tiny
    logs = eigenvalues.double().clamp(min=least).log().sort().values
    if tail == "half":
        first = len(logs) - len(logs) // 2
        return _hill(logs[first:], logs[first - 1])
    counts = torch.histc(logs, BINS)
    low, high = float(logs[0]), float(logs[-1])
    peak = low + (high - low) / BINS * int(counts.argmax())
    within = (logs[:-1] >= peak + math.log(0.95)) & (logs[:-1] <= peak + math.log(1.5))
    begins = within.nonzero().squeeze(1).tolist() or [0]
    return min((_misfit(logs[first:]), _hill(logs[first:], logs[first])) for first in begins)[1]


def _hill(tail: Tensor, begin: Tensor) -> float:
    return 1.0 + len(tail) / max(float((tail - begin).sum()), 1e-9)


def _misfit(tail: Tensor) -> float:
    """Largest distance of the tail's distribution from that of its power law."""
    law = 1.0 - torch.exp((tail - tail[0]) * (1.0 - _hill(tail, tail[0])))
    steps = torch.arange(len(tail), dtype=tail.dtype, device=tail.device) / len(tail)
    return float((law - steps).abs().max())


def sparsities(
    exponents: Mapping[int, float], sizes: Mapping[int, int], sparsity: float, tau: float
) -> dict[int, float]:
    """Sparsity of each block, with ``sparsity`` as their mean by number of weights.

    The exponents are brought linearly to 1 - tau .. 1 + tau, and all multiplied by one number. A
    block that would lose more than :data:`MOST` loses that, and the others make up for it.

    Args:
        exponents: by block.
        sizes: weights of each block.
        sparsity: over all.
        tau: half the range, relative.
    """
    low, high = min(exponents.values()), max(exponents.values())
    if low == high:
        return dict.fromkeys(exponents, sparsity)
    shape = {b: 1 - tau + 2 * tau * (v - low) / (high - low) for b, v in exponents.items()}
    most, full = max(MOST, sparsity), set[int]()
    while True:
        free = [b for b in shape if b not in full]
        wanted = sparsity * sum(sizes.values()) - most * sum(sizes[b] for b in full)
        scale = wanted / math.fsum(sizes[b] * shape[b] for b in free)
        over = {b for b in free if scale * shape[b] > most}
        if not over:
            return {b: most if b in full else scale * shape[b] for b in shape}
        full |= over
