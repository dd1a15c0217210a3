"""The layer distributions: each a small function from layers and a density to densities.

Most give every layer a share in proportion to some ratio, cap it at 1 and hand what is left over
to the other layers: `_share`. `DISTRIBUTIONS` is the registry; `distributions.allocate` is how to
use it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from sparsebench.errors import UserError, bad_value

Shapes = Mapping[str, Sequence[int]]
Densities = dict[str, float]


@dataclass(frozen=True)
class Layers:
    """The layers a distribution may set, in the order of the model.

    Attributes:
        shapes: shape of each weight, (out, in, *kernel).
        first_conv: the first layer of the model if it is a convolution and may be set.
        last_fc: the last 2-D layer of the model if it may be set.
    """

    shapes: Shapes
    first_conv: str | None = None
    last_fc: str | None = None

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Number of weights of each layer."""
        return {name: math.prod(shape) for name, shape in self.shapes.items()}

    @property
    def total(self) -> int:
        """Number of weights of all these layers."""
        return sum(self.sizes.values())


def _share(
    layers: Layers, ratios: Mapping[str, float], density: float, most: float = 1.0
) -> Densities:
    """Densities ``min(most, eps * ratio)`` whose weights add up to ``density`` of all.

    The capping loop of RigL (arXiv:1911.11134): layers with the highest ratio become as dense as
    may be, one ratio a round, until no density is above ``most``. Exact sums, so that the order of
    layers is no matter.
    """
    sizes, free = layers.sizes, dict(ratios)
    while free:
        capped = most * sum(size for name, size in sizes.items() if name not in free)
        eps = (density * layers.total - capped) / math.fsum(
            ratio * sizes[name] for name, ratio in free.items()
        )
        highest = max(free.values())
        if eps * highest <= most:
            break
        free = {name: ratio for name, ratio in free.items() if ratio != highest}
    return {name: eps * free[name] if name in free else most for name in sizes}


def _rest(layers: Layers, density: float, held: Densities) -> float:
    """The density of the layers not ``held`` for the total to be met; 0 if there are none."""
    others = sum(size for name, size in layers.sizes.items() if name not in held)
    return (density * layers.total - _taken(layers, held)) / others if others else 0.0


def _taken(layers: Layers, held: Densities) -> float:
    return math.fsum(share * layers.sizes[name] for name, share in held.items())


def _no_room(layers: Layers, density: float, held: Densities) -> UserError:
    """The asked sparsity leaves nothing for the layers a distribution does not hold."""
    asked, taken = density * layers.total, _taken(layers, held)
    most = max(held, key=lambda name: held[name] * layers.sizes[name])
    if len(held) == len(layers.sizes):
        why = f"no layer is left beside {', '.join(map(repr, held))}"
    else:
        why = f"the distribution keeps {taken:.0f} by itself, most in '{most}'"
        why += f"; sparsity must be below {math.floor(1e6 * (1 - taken / layers.total)) / 1e6:g}"
    return bad_value(
        "sparsity",
        round(1 - density, 12),
        f"leaves {asked:.0f} of {layers.total} weights, but {why}",
    )


def strict_uniform(layers: Layers, density: float) -> Densities:
    """Every layer at the same density, also the first."""
    return dict.fromkeys(layers.shapes, density)


def uniform(layers: Layers, density: float) -> Densities:
    """RigL's uniform (arXiv:1911.11134): a first convolution stays dense on top of the budget.

    The others do not pay for it, so the total is a little above the asked density.
    """
    dense = {layers.first_conv: 1.0} if layers.first_conv else {}
    return strict_uniform(layers, density) | dense


def uniform_plus(layers: Layers, density: float, *, compat: str | None = None) -> Densities:
    """Uniform+ (Gale 2019, arXiv:1902.09574): first convolution dense, last linear at least 0.2.

    The other layers share what is left. ``compat="liu"`` is the arithmetic of the code of Random
    Pruning (arXiv:2202.02643): it divides by the count of all layers, so the total is too low.
    """
    held = {layers.first_conv: 1.0} if layers.first_conv else {}
    rest = density if compat else _rest(layers, density, held)
    if layers.last_fc and rest < 0.2:
        held[layers.last_fc] = 0.2
        liu = density - _taken(layers, held) / layers.total
        rest = liu if compat else _rest(layers, density, held)
    if rest <= 0:
        raise _no_room(layers, density, held)
    return dict.fromkeys(layers.shapes, rest) | held


def er(layers: Layers, density: float) -> Densities:
    """Erdős–Rényi (SET, arXiv:1707.04780): proportional to (out + in) / (out * in)."""
    flat = next((name for name, shape in layers.shapes.items() if len(shape) < 2), None)
    if flat:
        raise bad_value("distribution.name", "er", f"needs two dimensions, '{flat}' has one")
    ratios = {name: (s[0] + s[1]) / (s[0] * s[1]) for name, s in layers.shapes.items()}
    return _share(layers, ratios, density)


def supsup(layers: Layers, density: float) -> Densities:
    """SupSup's (arXiv:2006.14769): min(0.5, k (out + in) / weights), k such that the total is met.

    The code of the paper sets k instead (1, 2, ..., 32). A layer has k weights for each of its
    inputs and outputs, whatever its kernel, and at most half of its weights: a mask of more has
    fewer choices. Above a density of 0.5 all layers have the same.
    """
    sizes = layers.sizes
    ratios = {name: sum(shape[:2]) / sizes[name] for name, shape in layers.shapes.items()}
    return _share(layers, ratios, density, most=max(0.5, density))


def erk(layers: Layers, density: float, *, power: float = 1.0) -> Densities:
    """Erdős–Rényi-Kernel (RigL, arXiv:1911.11134): (sum / product of all dimensions) ** power."""
    ratios = {name: (sum(s) / math.prod(s)) ** power for name, s in layers.shapes.items()}
    return _share(layers, ratios, density)


def erk_plus(
    layers: Layers, density: float, *, power: float = 1.0, fc_density: float = 1.0
) -> Densities:
    """ERK+ (Random Pruning, arXiv:2202.02643): the last linear at ``fc_density``, ERK elsewhere.

    The other layers pay for it: the total is met.
    """
    fc = layers.last_fc
    if fc is None:
        raise bad_value("distribution.name", "erk_plus", "there is no linear layer to set; try erk")
    held = {fc: fc_density}
    rest = _rest(layers, density, held)
    if rest <= 0:
        raise _no_room(layers, density, held)
    if rest > 1 + 1e-12:
        need = 1 - (1 - density) * layers.total / layers.sizes[fc]
        wanted = f"all other layers dense, and still too few weights; at least {need:.6f}"
        raise bad_value("distribution.fc_density", fc_density, wanted)
    others = Layers({name: shape for name, shape in layers.shapes.items() if name != fc})
    shares = erk(others, rest, power=power) | held
    return {name: shares[name] for name in layers.shapes}


def balanced(layers: Layers, density: float, *, compat: str | None = None) -> Densities:
    """The same number of weights in every layer, smaller layers dense (water-filling).

    ``compat="turboprune"`` is the one pass of TurboPrune's ``er_balanced``, which ends below the
    asked density.
    """
    if compat is None:
        return _share(layers, {name: 1 / size for name, size in layers.sizes.items()}, density)
    count = len(layers.sizes)
    level = density * layers.total / count
    shares = {}
    for index, (name, size) in enumerate(layers.sizes.items()):
        if size <= level:
            level += (level - size) / (count - index)
        shares[name] = min(1.0, level / size)
    return shares


def given(layers: Layers, density: float, *, given: Mapping[str, float] | None = None) -> Densities:
    """Densities of other origin (SNIP's ratios, say), scaled where they miss the asked density.

    A layer that came out empty counts as one weight.
    """
    known = given or {}
    missing = [name for name in layers.shapes if not 0 <= known.get(name, -1) <= 1]
    if missing:
        raise bad_value("distribution.given", list(known), f"no density in [0, 1] for {missing[0]}")
    floors = {name: max(known[name], 1 / size) for name, size in layers.sizes.items()}
    return _share(layers, floors, density)


DISTRIBUTIONS: dict[str, Callable[..., Densities]] = {
    "strict_uniform": strict_uniform,
    "uniform": uniform,
    "uniform_plus": uniform_plus,
    "er": er,
    "erk": erk,
    "erk_plus": erk_plus,
    "supsup": supsup,
    "balanced": balanced,
    "given": given,
}
