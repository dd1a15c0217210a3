"""Perplexity by the standard protocol of pruning papers.

The rows of a split are joined by empty lines and tokenised as one text, which is cut into
segments of the context length; what is left at the end is dropped, and nothing is known of the
segment before. exp of the mean, over all predicted tokens, of the cross-entropy in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from sparsebench.llm.likelihood import Likelihood


@dataclass(frozen=True)
class Perplexity:
    """What was measured on segments of one length."""

    value: float
    segments: int
    tokens: int


def perplexity(
    model: nn.Module | Likelihood,
    ids: Tensor,
    length: int,
    max_segments: int | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Perplexity:
    """Measure.

    Args:
        model: a causal language model of transformers, or one whose blocks come from disk.
        ids: tokens of the whole text.
        length: tokens of a segment, of which all but the first are predicted.
        max_segments: only so many, from the start; None: all.
        report: is told segments done and segments in all.

    Returns:
        The value, infinite or NaN if the model's outputs are, and what it is the mean of.
    """
    likelihood = model if isinstance(model, Likelihood) else Likelihood(model)
    segments = min(len(ids) // length, max_segments or len(ids))
    total = 0.0
    parts = ids[: segments * length].view(segments, length)
    for number, losses in enumerate(likelihood.losses(list(parts))):
        total += float(losses.double().sum())
        report(number + 1, segments)
    tokens = segments * (length - 1)
    mean = total / tokens
    value = math.inf if mean > 700 else math.exp(mean)  # NaN stays NaN
    return Perplexity(value, segments, tokens)
