"""From one density of the whole network to exact counts of non-zeros for every layer.

>>> allocate({"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)}, 0.1, name="erk")
{'fc1': 18714, 'fc2': 6906, 'fc3': 1000}
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from sparsebench.errors import UserError, bad_value
from sparsebench.sparsity.shares import (
    DISTRIBUTIONS,
    Densities,
    Layers,
    Shapes,
    balanced,
    er,
    erk,
    erk_plus,
    given,
    strict_uniform,
    supsup,
    uniform,
    uniform_plus,
)

# The distributions are imported to be found here by their import path.
__all__ = [
    "DISTRIBUTIONS", "allocate", "apportion", "balanced", "densities", "er", "erk", "erk_plus",
    "given", "strict_uniform", "supsup", "uniform", "uniform_plus",
]  # fmt: skip

Distribution = Callable[..., Densities]

_DEFAULTS: dict[str, Any] = {"power": 1.0, "fc_density": 1.0, "compat": None, "given": None}
_COMPAT = {"uniform_plus": "liu", "balanced": "turboprune"}


def densities(
    shapes: Shapes,
    density: float,
    *,
    name: str | Distribution = "erk",
    first_dense: bool = False,
    last_dense: bool = False,
    fixed: Mapping[str, float] | None = None,
    **options: Any,
) -> Densities:
    """The density of every layer.

    Args:
        shapes: shape of each weight by name, in the order of the model.
        density: share of the weights to keep, in (0, 1].
        name: a key of `DISTRIBUTIONS`, or a function of one's own such as those in there.
        first_dense: keep the first layer dense, whatever it is.
        last_dense: keep the last 2-D layer dense.
        fixed: densities set by the user, by glob over names; the first that matches counts.
        options: ``power``, ``fc_density``, ``compat`` or ``given``, where a distribution has them.

    Returns:
        Density of each layer in (0, 1], in the order given. Layers that the user fixed or keeps
        dense are outside the budget, as in RigL's code: the others have ``density`` among
        themselves, and the total moves.

    Raises:
        UserError: an unknown name or option, a value out of range, a target out of reach.
    """
    free, pinned = _shares(shapes, density, name, first_dense, last_dense, fixed, options)
    return {layer: (free | pinned)[layer] for layer in shapes}


def allocate(
    shapes: Shapes,
    density: float,
    *,
    name: str | Distribution = "erk",
    first_dense: bool = False,
    last_dense: bool = False,
    fixed: Mapping[str, float] | None = None,
    **options: Any,
) -> dict[str, int]:
    """The exact number of non-zeros of every layer; arguments as `densities`.

    Returns:
        Counts, each in [1, size of the layer]. They add up to ``round(density * weights)`` if the
        distribution meets the density, else to the rounded sum of its densities. Layers that the
        user set are rounded by themselves and come on top.

    Raises:
        UserError: as `densities`, and if there are fewer weights to keep than layers.
    """
    free, pinned = _shares(shapes, density, name, first_dense, last_dense, fixed, options)
    sizes = Layers(shapes).sizes
    counts = {layer: max(1, round(share * sizes[layer])) for layer, share in pinned.items()}
    want = {layer: share * sizes[layer] for layer, share in free.items()}
    room = sum(sizes[layer] for layer in free)
    asked, held = density * room, math.fsum(want.values())
    # The noise of the sum must not decide a half: where the two agree, what was asked counts.
    total = round(asked if math.isclose(asked, held, rel_tol=1e-12) else held)
    if total < len(want):
        least = min(want, key=lambda layer: want[layer])
        raise bad_value(
            "sparsity",
            _sparsity(density),
            f"leaves {total} weights for {len(want)} layers ({want[least]:.2g} for '{least}'), and "
            f"each needs 1: at most {math.floor(1e6 * (1 - len(want) / room)) / 1e6:g}",
        )
    counts |= apportion(want, sizes, total)
    return {layer: counts[layer] for layer in shapes}


def apportion(want: Mapping[str, float], sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """Whole counts near ``want`` that add up to ``total``: largest remainders, ties by order.

    Args:
        want: number of weights of each layer, not whole.
        sizes: number of weights each layer has room for.
        total: sum to meet; from the number of layers to the sum of ``sizes``.

    Returns:
        Counts in [1, size]. A layer that would round to 0 gets 1, at the expense of the others.
    """
    counts = {layer: min(max(int(share), 1), sizes[layer]) for layer, share in want.items()}
    while gap := total - sum(counts.values()):
        step = 1 if gap > 0 else -1
        able = [layer for layer, count in counts.items() if 1 <= count + step <= sizes[layer]]
        able = [layer for layer in able if want[layer] < sizes[layer]] or able  # dense stays dense
        # Rounded, so that float noise is no difference; max takes the first of equals.
        best = max(able, key=lambda layer: round(step * (want[layer] - counts[layer]), 6))
        counts[best] += step
    return counts


def _shares(
    shapes: Shapes,
    density: float,
    name: str | Distribution,
    first_dense: bool,
    last_dense: bool,
    fixed: Mapping[str, float] | None,
    options: Mapping[str, Any],
) -> tuple[Densities, Densities]:
    """Densities of the layers left to the distribution, and of those the user has set."""
    function = _find(name)
    used = _check(shapes, density, function, options)
    pinned = _pinned(shapes, first_dense, last_dense, fixed or {})
    free = {layer: shape for layer, shape in shapes.items() if layer not in pinned}
    if not free:
        raise bad_value("sparsity", _sparsity(density), "all layers are dense or fixed by you")
    first, fc = next(iter(shapes)), _last_fc(shapes)
    layers = Layers(
        free,
        first_conv=first if first in free and len(shapes[first]) > 2 else None,
        last_fc=fc if fc in free else None,
    )
    shares = function(layers, density, **used)
    return {layer: min(1.0, share) for layer, share in shares.items()}, pinned


def _pinned(shapes: Shapes, first: bool, last: bool, fixed: Mapping[str, float]) -> Densities:
    """Layers whose density the user has set."""
    for pattern, value in fixed.items():
        if not 0 < value <= 1:
            raise bad_value(f"distribution.fixed.{pattern}", value, "a density in (0, 1]")
        if not any(fnmatchcase(layer, pattern) for layer in shapes):
            raise bad_value("distribution.fixed", pattern, "matches no layer", shapes)
    pinned = {next(iter(shapes)): 1.0} if first else {}
    if last:
        fc = _last_fc(shapes)
        if fc is None:
            raise bad_value("distribution.last_dense", last, "there is no linear layer")
        pinned[fc] = 1.0
    for layer in shapes:
        for pattern, value in fixed.items():
            if fnmatchcase(layer, pattern):
                pinned[layer] = float(value)
                break
    return pinned


def _last_fc(shapes: Shapes) -> str | None:
    return next((layer for layer in reversed(list(shapes)) if len(shapes[layer]) == 2), None)


def _sparsity(density: float) -> float:
    return round(1 - density, 12)


def _find(name: str | Distribution) -> Distribution:
    if callable(name):
        return name
    if name not in DISTRIBUTIONS:
        known = ", ".join(DISTRIBUTIONS)
        raise bad_value("distribution.name", name, f"one of {known}", DISTRIBUTIONS)
    return DISTRIBUTIONS[name]


def _check(
    shapes: Shapes, density: float, function: Distribution, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The options this distribution uses; refuses those it has no use for, and wrong values."""
    if not shapes:
        raise UserError("no layer is selected to be sparse")
    if not 0 < density <= 1:
        raise bad_value("sparsity", _sparsity(density), "a number in [0, 1)")
    taken = inspect.signature(function).parameters
    for key, value in options.items():
        if key not in _DEFAULTS:
            raise bad_value("distribution", key, f"options: {', '.join(_DEFAULTS)}", _DEFAULTS)
        if value == _DEFAULTS[key]:
            continue
        if key not in taken:
            raise bad_value(f"distribution.{key}", value, f"not an option of '{function.__name__}'")
        if key == "power" and not 0 <= value < math.inf:
            raise bad_value("distribution.power", value, "a number of at least 0")
        if key == "fc_density" and not 0 < value <= 1:
            raise bad_value("distribution.fc_density", value, "a density in (0, 1]")
        official = _COMPAT.get(function.__name__, value)
        if key == "compat" and value != official:
            raise bad_value("distribution.compat", value, f"null or {official}")
    return {key: value for key, value in options.items() if key in taken}
