"""What a composed method will cost, from its schedule alone: no weights, no training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field

import torch

from sparsebench.sparsity.composed import Composed
from sparsebench.sparsity.distributions import allocate
from sparsebench.sparsity.method import Densities
from sparsebench.sparsity.updates import one_way
from sparsebench.sparsity.window import Window, updates


@dataclass(frozen=True)
class Stretch:
    """Some steps of training during which the masks keep their counts.

    Attributes:
        steps: how many optimizer steps.
        nonzeros: connections of each layer during them.
        dense_gradient_steps: how many of them compute the gradient of absent weights too.
        gradients: densities of the backward pass, where the masks do not tell.
    """

    steps: int
    nonzeros: dict[str, int]
    dense_gradient_steps: int
    gradients: Densities = field(default_factory=dict)


def forecast(
    method: Composed,
    shapes: Mapping[str, torch.Size],
    total_steps: int,
    steps_per_epoch: int,
    first: Mapping[str, int] | None = None,
) -> Iterator[Stretch]:
    """The stretches of a run, in order.

    Where layers compete for the global count, or growth is redistributed, the counts of
    single layers are known only after training; the distribution's are taken instead.

    Args:
        method: the method, not started.
        shapes: shape of each sparse weight.
        total_steps: optimizer steps of the run.
        steps_per_epoch: optimizer steps of an epoch.
        first: connections of each layer before the first step, where the sparsity stays as it is
            then and they are known.
    """
    spec = method.spec
    window = method.window(total_steps, steps_per_epoch)
    changes: list[int] = []
    if method.sparsity > 0 and updates(spec):
        changes = [step for step in range(1, total_steps + 1) if window.is_update(step)]
    previous, present = 0, {name: shape.numel() for name, shape in shapes.items()}
    for step in [*changes, total_steps]:
        if step > previous:
            sparsity = window.sparsity(spec, method.sparsity, previous) if method.sparsity else 0.0
            gradients = _gradients(method, shapes, window, previous)
            known = "weight_gradient" in gradients
            dense = 0 if known else dense_gradient_steps(method, window, previous, step)
            present = dict(first or one_way(counts(method, shapes, sparsity), present))
            yield Stretch(step - previous, present, dense, gradients)
        previous = step


def _gradients(
    method: Composed, shapes: Mapping[str, torch.Size], window: Window, step: int
) -> Densities:
    """What the backward pass after ``step`` steps computes; a method may foretell it."""
    found = getattr(method, "forecast_gradients", None)
    return found(shapes, window, step) if found and method.sparsity > 0.0 else {}


def counts(method: Composed, shapes: Mapping[str, torch.Size], sparsity: float) -> dict[str, int]:
    """Connections of each layer at a sparsity, by the method's distribution."""
    if sparsity == 0.0:
        return {name: shape.numel() for name, shape in shapes.items()}
    options = asdict(method.distribution)
    weights = allocate(shapes, 1.0 - sparsity, **options)
    found: dict[str, int] = method.structure.forecast(shapes, weights)
    return found


def dense_gradient_steps(method: Composed, window: Window, first: int, last: int) -> int:
    """Steps in (first, last] that compute the gradient of absent weights."""
    if method.sparsity == 0.0:
        return 0
    if method.storage == "shadow":
        return last - first
    when = {method.observers[name].dense_gradient for name in method.needs}
    if "always" in when:
        return max(min(last, window.end) - first, 0)
    return int("update" in when and window.is_update(last))
