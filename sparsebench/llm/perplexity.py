"""Perplexity by the standard protocol of pruning papers.

The rows of a split are joined by empty lines and tokenised as one text, which is cut into
segments of the context length; what is left at the end is dropped, and nothing is known of the
segment before. exp of the mean, over all predicted tokens, of the cross-entropy in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

#: Positions whose logits are held at a time: over a large vocabulary they are the most memory.
CHUNK = 128


@dataclass(frozen=True)
class Perplexity:
    """What was measured on segments of one length."""

    value: float
    segments: int
    tokens: int


@torch.no_grad()
def perplexity(
    model: nn.Module,
    ids: Tensor,
    length: int,
    max_segments: int | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Perplexity:
    """Measure.

    Args:
        model: a causal language model of transformers.
        ids: tokens of the whole text.
        length: tokens of a segment, of which all but the first are predicted.
        max_segments: only so many, from the start; None: all.
        report: is told segments done and segments in all.

    Returns:
        The value, infinite or NaN if the model's outputs are, and what it is the mean of.
    """
    segments = min(len(ids) // length, max_segments or len(ids))
    device = next(model.parameters()).device
    losses_of = _losses(model, ids[: min(length, 8)].unsqueeze(0).to(device))
    total = 0.0
    for number in range(segments):
        segment = ids[number * length : (number + 1) * length].unsqueeze(0).to(device)
        total += losses_of(segment)
        report(number + 1, segments)
    tokens = segments * (length - 1)
    mean = total / tokens
    value = math.inf if mean > 700 else math.exp(mean)  # NaN stays NaN
    return Perplexity(value, segments, tokens)


def _losses(model: nn.Module, probe: Tensor) -> Callable[[Tensor], float]:
    """The sum of a segment's losses, by parts of the head if that gives the model's own logits.

    Some models do more than a matrix product behind their blocks (Gemma's soft cap, Cohere's
    scale); those are asked for all logits.
    """
    inner: Any = getattr(model, "base_model", None)
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    whole = model(input_ids=probe, use_cache=False).logits
    plain = False
    if inner is not None and inner is not model and head is not None:
        hidden = inner(input_ids=probe, use_cache=False)[0]
        if hidden.shape[-1] == head.weight.shape[-1]:
            plain = bool(torch.allclose(head(hidden), whole, rtol=1e-3, atol=1e-3, equal_nan=True))

    def of(segment: Tensor) -> float:
        targets = segment[0, 1:]
        if not plain:
            logits = model(input_ids=segment, use_cache=False).logits[0, :-1]
            return _sum(logits, targets)
        assert inner is not None
        assert head is not None
        hidden = inner(input_ids=segment, use_cache=False)[0][0, :-1]
        pairs = zip(torch.split(hidden, CHUNK), torch.split(targets, CHUNK), strict=True)
        return sum(_sum(head(some), wanted) for some, wanted in pairs)

    return of


def _sum(logits: Tensor, targets: Tensor) -> float:
    return float(nn.functional.cross_entropy(logits.float(), targets, reduction="sum").double())
