"""How sparse each layer of a language model gets, at one sparsity over all.

A rule is a function of a :class:`Question`; it gives the sparsity of each weight by its name.
With N:M the pattern is the same everywhere, and only ``uniform`` makes sense.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsebench.errors import UserError
from sparsebench.llm.layers import Block, Linear
from sparsebench.llm.scores import Score, Weights
from sparsebench.sparsity.distributions import allocate
from sparsebench.sparsity.scores import needs, needs_of
from sparsebench.sparsity.topk import count, topk_mask


@dataclass(frozen=True)
class Question:
    """What a rule may ask.

    Attributes:
        blocks: of the model, not pruned yet.
        sparsity: over all their linear layers.
        spec: the method's dials.
        score: of the method.
        dense_scores: calls a function with (number of a block, its linear layers, their scores)
            for one block after another, on activations of the unpruned model.
        weights: a layer as a score without measures sees it.
    """

    blocks: Sequence[Block]
    sparsity: float
    spec: Any
    score: Score
    dense_scores: Callable[[Score, Callable[[int, list[Tensor]], None]], None]
    weights: Callable[[Linear], Weights]

    @property
    def linears(self) -> list[Linear]:
        """All linear layers."""
        return [linear for block in self.blocks for linear in block.linears]


def uniform(question: Question) -> dict[str, float]:
    """All layers alike, the usual of language models."""
    return {linear.name: question.sparsity for linear in question.linears}


def er(question: Question) -> dict[str, float]:
    """Density proportional to (R + C) / (R C), as in SET (arXiv 1707.04780)."""
    shapes = {linear.name: tuple(linear.weight.shape) for linear in question.linears}
    counts = allocate(shapes, 1.0 - question.sparsity, name="er")
    return {name: 1.0 - counts[name] / math.prod(shape) for name, shape in shapes.items()}


def together(question: Question) -> dict[str, float]:
    """All weights of all layers compete: the scope ``global`` of magnitude pruning."""
    if needs_of(question.score):
        raise UserError(
            "method.ratios=global: the method's score looks at activations, which are not on one "
            "scale in all blocks; use it with method.score=magnitude, or method.ratios=owl"
        )
    scores = []
    for block in question.blocks:
        with block.loaded():
            scores += [question.score(question.weights(linear)) for linear in block.linears]
    flat = torch.cat([score.reshape(-1) for score in scores])
    kept = topk_mask(flat, flat.numel() - math.floor(flat.numel() * question.sparsity))
    parts = torch.split(kept, [score.numel() for score in scores])
    return {
        linear.name: 1.0 - count(part) / part.numel()
        for linear, part in zip(question.linears, parts, strict=True)
    }


@needs("squares")
def owl(question: Question) -> dict[str, float]:
    """OWL (arXiv 2310.05175): blocks with more outliers are denser; code luuyin/OWL.

    D_b is the share of a block's scores |W| ||X|| (of the unpruned model) that are above
    ``outliers`` times their mean. Brought linearly to a range of 2 x ``spread`` and centred, it
    is added to the density. Where all D_b are equal, or only one block is there, it is uniform.
    """
    from sparsebench.llm.scores import wanda

    shares: dict[int, float] = {}

    def look(number: int, scores: list[Tensor]) -> None:
        flat = torch.cat([score.reshape(-1) for score in scores])
        above = flat > question.spec.outliers * flat.mean(dtype=torch.float64).float()
        shares[number] = 100.0 * count(above) / flat.numel()

    question.dense_scores(wanda, look)
    densities = owl_densities(list(shares.values()), question.sparsity, question.spec.spread)
    return {linear.name: 1.0 - densities[linear.block] for linear in question.linears}


def owl_densities(shares: Sequence[float], sparsity: float, spread: float) -> list[float]:
    """Density of each block from its share of outliers, with ``1 - sparsity`` as their mean.

    Args:
        shares: of outliers, by block.
        sparsity: the mean over blocks, which are of one size.
        spread: half the range of densities.

    Raises:
        UserError: a density would leave (0, 1].
    """
    low, high = min(shares), max(shares)
    if low == high:
        return [1.0 - sparsity] * len(shares)
    moved = [(share - low) / (high - low) * 2 * spread for share in shares]
    mean = math.fsum(moved) / len(moved)
    densities = [value - mean + 1.0 - sparsity for value in moved]
    if min(densities) <= 0 or max(densities) > 1:
        raise UserError(
            f"method.spread={spread}: at sparsity={sparsity:g} densities would go from "
            f"{min(densities):.3f} to {max(densities):.3f}; a smaller spread is needed"
        )
    return densities
