"""What a method promises where the general formulas of test_conformance do not hold.

By default a method's counts follow from its YAML (window, sparsity schedule, distribution), absent
weights are zero in each forward pass, and the masks change within the window or not at all. A
method that is otherwise has an entry here, named as its YAML, written from its paper and never
from the code.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

#: The shortest run of test_conformance: steps, steps of an epoch, steps between updates, sparsity.
STEPS, PER_EPOCH, EVERY, SPARSITY = 12, 4, 2, 0.8


@dataclass(frozen=True)
class Expectation:
    """The promises of one method, where they are its own.

    Attributes:
        dials: what a test of 12 steps sets beside ``every=2it``, such as a shorter window;
            ``every`` itself may be another.
        nonzeros: from steps done and the size of each layer, how many connections there are
            in all; ``None`` if no formula gives them, and then ``bounds`` should.
        bounds: from steps done, the least and the most sparsity there may be.
        layers: from steps done and sizes, the count of each layer, where it is known.
        absent_are_zero: absent weights show as exact zeros in the forward pass.
        new_from_zero: new connections start from zero, weight and optimizer state.
        changes: whether the masks change at all; ``None``: they may.
        until: progress in [0, 1] after which they don't.
        dense_at_zero: with sparsity 0 training is bitwise that of the dense network.
        draws: whether the seed decides anything.
        networks: kinds of network that it is for.
    """

    dials: dict[str, object] = field(default_factory=dict)
    nonzeros: Callable[[int, dict[str, int]], int] | None = None
    bounds: Callable[[int], tuple[float, float]] | None = None
    layers: Callable[[int, dict[str, int]], dict[str, int]] | None = None
    absent_are_zero: bool = True
    new_from_zero: bool = True
    changes: bool | None = True
    until: float = 1.0
    dense_at_zero: bool = True
    draws: bool = False
    networks: tuple[str, ...] = ("mlp", "conv", "channels_last", "transformer")


EXPECTATIONS: dict[str, Expectation] = {}
