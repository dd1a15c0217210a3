"""Scores: what is worth keeping or growing, higher is better.

A score is a function of a :class:`Layer` that returns a tensor of the shape of
``layer.weight``. ``needs`` declares what the engine must gather for it beyond the weights.
A score may carry ``pick(layer, among, k)``, a faster way to the same choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from sparsebench.sparsity.topk import compress, count, positions


@dataclass(frozen=True)
class Layer:
    """What a score may look at; all tensors flat and of one length.

    Attributes:
        weight: values, zero where absent (``zeroed`` storage).
        generator: the run's own source of randomness (on the CPU).
        seen: what was gathered for the score beyond the weights, by the names it declared.
        name: of the parameter.
        shape: of the weight, such as (outputs, inputs).
        factor: the mask in the weight's type, 1 where a connection exists.
    """

    weight: Tensor
    generator: torch.Generator
    seen: Mapping[str, Tensor] = field(default_factory=dict)
    name: str = ""
    shape: tuple[int, ...] = ()
    factor: Tensor | None = None

    def __getitem__(self, what: str) -> Tensor:
        """What an observer gathered, such as ``gradient``; the score must have declared it."""
        return self.seen[what]

    @property
    def mask(self) -> Tensor:
        """Bool, true where a connection exists (a copy)."""
        assert self.factor is not None
        return self.factor.reshape(-1) != 0

    def only(self, kept: Tensor) -> Layer:
        """The layer with the connections at these flat positions, and no others in its mask."""
        assert self.factor is not None
        none = torch.zeros_like(self.weight, dtype=self.factor.dtype)
        return replace(self, factor=none.index_fill_(0, kept, 1.0))


Score = Callable[[Layer], Tensor]


Part = TypeVar("Part", bound=Callable[..., Any])


def needs(*what: str) -> Callable[[Part], Part]:
    """Declare what a part looks at beside the weights: names of observers (``registry``)."""

    def declare(part: Part) -> Part:
        part.needs = frozenset(what)  # type: ignore[attr-defined]  # functions take attributes
        return part

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
    return layer["gradient"].abs()


@needs("gradient")
def saliency(layer: Layer) -> Tensor:
    """|weight x gradient|, the first-order change of the loss (SNIP, arXiv 1810.02340)."""
    return (layer.weight * layer["gradient"]).abs()


@needs("momentum")
def momentum(layer: Layer) -> Tensor:
    """Absolute momentum of the dense gradient (SNFS, arXiv 1907.04840)."""
    return layer["momentum"].abs()


def random(layer: Layer) -> Tensor:
    """Uniform noise: every choice is equally likely (SET, arXiv 1707.04780)."""
    noise = torch.rand(layer.weight.numel(), generator=layer.generator)
    return noise.to(layer.weight.device)


def _pick_random(layer: Layer, among: Tensor, k: int) -> Tensor:
    """``k`` of the allowed positions, uniform without replacement.

    Draws positions and throws away what is not allowed or was drawn before, which leaves a
    uniform set; with few positions allowed it shuffles them instead.
    """
    allowed = among.cpu()
    n, room = allowed.numel(), count(allowed)
    if k * 2 > room or room * 4 < n:
        order = torch.randperm(room, generator=layer.generator)[:k]
        return positions(allowed)[order].sort().values.to(among.device)
    drawn = torch.zeros(n, dtype=torch.bool)
    while missing := k - count(drawn):
        draw = torch.randint(n, (missing,), generator=layer.generator)
        drawn.index_fill_(0, compress(draw, allowed.index_select(0, draw)), True)
    return positions(drawn).to(among.device)


random.pick = _pick_random  # type: ignore[attr-defined]  # functions take attributes


@needs("explored")
def unexplored(layer: Layer) -> Tensor:
    """Positions never active first, at random among equals (ITOP's ``random_unfired``)."""
    return random(layer) - layer["explored"].to(torch.float32)


Active = Mapping[str, Tensor]  # for each layer, bool over its units


def momentum_share(layers: Mapping[str, Layer], before: Active, kept: Active) -> dict[str, float]:
    """Mean absolute momentum of the weights of each layer that were active before the drop.

    SNFS, arXiv 1907.04840, 3.2 and algorithm 1.
    """
    shares = {}
    for name, layer in layers.items():
        active = compress(layer["momentum"], before[name])
        shares[name] = float(active.abs().mean()) if active.numel() else 0.0
    return shares


momentum_share.needs = frozenset({"momentum"})  # type: ignore[attr-defined]  # as above


def survivor_share(layers: Mapping[str, Layer], before: Active, kept: Active) -> dict[str, float]:
    """Number of weights that survived in each layer (DSR, arXiv 1902.05967)."""
    return {name: float(kept[name].sum()) for name in layers}
