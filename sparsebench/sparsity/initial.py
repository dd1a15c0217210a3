"""The masks of the first step.

They come from a score (``random``, ``magnitude``, ``saliency`` for SNIP, ...), in one round or in
several with the density falling geometrically, or from a *placer*: a function marked by
:func:`places` that lays out all layers itself, such as random walks or groups of units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sparsebench.errors import UserError
from sparsebench.sparsity import updates
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.scores import Layer, Score
from sparsebench.sparsity.structure import Unstructured

#: For each sparse parameter a bool mask of its shape, from the run and exact counts (of each
#: layer, or of all together).
Placer = Callable[[TrainState, updates.Counts], Mapping[str, Tensor]]
Layers = Callable[[], Mapping[str, Layer]]


def places(placer: Placer) -> Placer:
    """Mark a function as one that lays out the first masks of all layers."""
    placer.places = True  # type: ignore[attr-defined]  # functions take attributes
    return placer


def is_placer(part: Any) -> bool:
    """Whether a part lays out masks, and is no score."""
    return bool(getattr(part, "places", False))


@torch.no_grad()
def place(
    state: TrainState,
    part: Score | Placer,
    counts: Callable[[float], updates.Counts],
    target: float,
    layers: Layers,
    structure: Unstructured,
    *,
    rounds: int = 1,
    regrow: bool = False,
    shuffle: bool = False,
) -> None:
    """Set the masks of the first step; weights keep their values (the session masks them).

    Args:
        state: the run; its masks are full.
        part: a score, or a placer.
        counts: what to keep at a sparsity: units of each layer, or of all together.
        target: sparsity to reach.
        layers: what a score looks at, at the masks of the moment.
        structure: what a unit is.
        rounds: in how many steps a score prunes; the density falls by the same factor in each.
        regrow: a later round may take back what an earlier one left out.
        shuffle: each layer keeps its number of units, at random places.

    Raises:
        UserError: a placer asked for what only a score can do.
    """
    if is_placer(part):
        if rounds > 1 or structure.grouped:
            raise UserError("method.initial: it lays out single weights, in one round")
        for name, mask in part(state, counts(target)).items():  # type: ignore[call-arg, arg-type, union-attr]  # a placer
            state.masks.set(name, mask)
    else:
        _by_rounds(state, part, counts, target, layers, structure, rounds, regrow)  # type: ignore[arg-type]  # a score
    if shuffle:
        _shuffle(state, structure)


def _by_rounds(
    state: TrainState,
    score: Score,
    counts: Callable[[float], updates.Counts],
    target: float,
    layers: Layers,
    structure: Unstructured,
    rounds: int,
    regrow: bool,
) -> None:
    dense = {name: p.detach().clone() for name, p in state.masks.parameters.items()}
    for number in range(1, rounds + 1):
        sparsity = target if number == rounds else 1.0 - (1.0 - target) ** (number / rounds)
        looked = layers()  # at the masked weights
        if regrow:  # what is absent is judged by the value it would have
            looked = {n: _at(layer, dense[n]) for n, layer in looked.items()}
        free = {
            name: torch.ones_like(units) if regrow else units
            for name, units in structure.present(state.masks).items()
        }
        chosen = updates.best(looked, free, score, counts(sparsity), structure)
        for name, units in chosen.items():
            set_units(state, name, units, structure)
        if number < rounds:
            for name, parameter in state.masks.parameters.items():
                parameter.copy_(dense[name] * state.masks.factor(name))
    if rounds > 1:
        for name, parameter in state.masks.parameters.items():
            parameter.copy_(dense[name])


def _at(layer: Layer, weight: Tensor) -> Layer:
    return Layer(
        weight.reshape(-1), layer.generator, layer.seen, layer.name, layer.shape, layer.factor
    )


def _shuffle(state: TrainState, structure: Unstructured) -> None:
    for name, units in structure.present(state.masks).items():
        order = torch.randperm(units.numel(), generator=state.generator)
        shuffled = units.cpu()[order].to(units.device)
        set_units(state, name, shuffled.nonzero().view(-1), structure)


def set_units(state: TrainState, name: str, units: Tensor, structure: Unstructured) -> None:
    """Let a layer consist of these units."""
    parameter = state.masks.parameters[name]
    elements = structure.elements(units, tuple(parameter.shape))
    mask = torch.zeros(parameter.numel(), dtype=torch.bool, device=parameter.device)
    state.masks.set(name, mask.index_fill_(0, elements, True).view(parameter.shape))
