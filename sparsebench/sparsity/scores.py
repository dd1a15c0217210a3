"""Scores: what is worth keeping or growing, higher is better.

A score is a function of a :class:`Layer` that returns a tensor of the shape of
``layer.weight``. ``needs`` declares what the engine must gather for it beyond the weights.
A score may carry ``pick(layer, occupied, k)``, a faster way to the same choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layer:
    """What a score may look at; all tensors flat and of one length.

    Attributes:
        weight: values, zero where absent (``zeroed`` storage).
        gradient: dense gradient of the last effective batch.
        momentum: decayed sum of the dense gradients of all steps.
        explored: bool, true where a connection has ever been.
        generator: the run's own source of randomness (on the CPU).
    """

    weight: Tensor
    generator: torch.Generator
    gradient: Tensor | None = None
    momentum: Tensor | None = None
    explored: Tensor | None = None

    def at(self, positions: Tensor) -> Layer:
        """The same layer, at some positions only."""
        names = ("weight", "gradient", "momentum", "explored")
        picked = {n: v[positions] for n in names if (v := getattr(self, n)) is not None}
        return replace(self, **picked)


Score = Callable[[Layer], Tensor]


def needs(*what: str) -> Callable[[Score], Score]:
    """Declare what a score looks at beside the weights: gradient, momentum, explored."""

    def declare(score: Score) -> Score:
        score.needs = frozenset(what)  # type: ignore[attr-defined]  # functions take attributes
        return score

    return declare


def needs_of(score: Any) -> frozenset[str]:
    """What a score declared; nothing if it declared nothing."""
    return getattr(score, "needs", frozenset())


def magnitude(layer: Layer) -> Tensor:
    """Absolute value of the weight."""
    return layer.weight.abs()


@needs("gradient")
def gradient(layer: Layer) -> Tensor:
    """Absolute value of the dense gradient (RigL, arXiv 1911.11134)."""
    assert layer.gradient is not None
    return layer.gradient.abs()


@needs("gradient")
def saliency(layer: Layer) -> Tensor:
    """|weight x gradient|, the first-order change of the loss (SNIP, arXiv 1810.02340)."""
    assert layer.gradient is not None
    return (layer.weight * layer.gradient).abs()


@needs("momentum")
def momentum(layer: Layer) -> Tensor:
    """Absolute momentum of the dense gradient (SNFS, arXiv 1907.04840)."""
    assert layer.momentum is not None
    return layer.momentum.abs()


def random(layer: Layer) -> Tensor:
    """Uniform noise: every choice is equally likely (SET, arXiv 1707.04780)."""
    noise = torch.rand(layer.weight.numel(), generator=layer.generator)
    return noise.to(layer.weight.device)


def _pick_random(layer: Layer, occupied: Tensor, k: int) -> Tensor:
    """``k`` of the free positions, uniform without replacement.

    Draws positions and throws away what is occupied or was drawn before, which leaves a
    uniform set; with few positions free it shuffles them instead.
    """
    n, free = occupied.numel(), occupied.numel() - int(occupied.sum())
    if k * 2 > free or free * 4 < n:
        positions = (~occupied).nonzero().view(-1)
        order = torch.randperm(free, generator=layer.generator)[:k]
        return positions[order.to(positions.device)].sort().values
    taken = occupied.cpu().clone()
    picked: list[Tensor] = []
    missing = k
    while missing:
        draw = torch.randint(n, (missing,), generator=layer.generator).unique()
        draw = draw[~taken[draw]]
        taken[draw] = True
        picked.append(draw)
        missing -= draw.numel()
    return torch.cat(picked).sort().values.to(occupied.device)


random.pick = _pick_random  # type: ignore[attr-defined]  # functions take attributes


@needs("explored")
def unexplored(layer: Layer) -> Tensor:
    """Positions never active first, at random among equals (ITOP's ``random_unfired``)."""
    assert layer.explored is not None
    return random(layer) - layer.explored.to(torch.float32)


def momentum_share(layers: Mapping[str, Layer], kept: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean absolute momentum of each layer's active weights (SNFS, arXiv 1907.04840, 3.2)."""
    shares = {}
    for name, layer in layers.items():
        assert layer.momentum is not None
        shares[name] = float(layer.momentum[kept[name]].abs().mean()) if kept[name].any() else 0.0
    return shares


momentum_share.needs = frozenset({"momentum"})  # type: ignore[attr-defined]


def survivor_share(layers: Mapping[str, Layer], kept: Mapping[str, Tensor]) -> dict[str, float]:
    """Number of weights that survived in each layer (DSR, arXiv 1902.05967)."""
    return {name: float(kept[name].sum()) for name in layers}
