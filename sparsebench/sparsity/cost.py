"""FLOPs of a training before it is run, and how long a training a budget of FLOPs pays for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from sparsebench.errors import UserError
from sparsebench.sparsity.composed import Composed
from sparsebench.sparsity.flops import LayerFlops
from sparsebench.sparsity.forecast import Stretch, forecast
from sparsebench.sparsity.training_flops import TrainingFlops

MOST_EPOCHS = 100_000


def training_cost(
    stretches: Iterable[Stretch],
    flops: LayerFlops,
    sizes: Mapping[str, int],
    dense_forward: float,
    batch: int,
) -> TrainingFlops:
    """FLOPs of a training laid out in stretches.

    Args:
        stretches: what :func:`sparsebench.sparsity.forecast.forecast` gives.
        flops: dense FLOPs of the model being trained, by layer.
        sizes: number of weights of each sparse layer.
        dense_forward: forward FLOPs of one sample in the dense model that counts are relative to.
        batch: samples of one optimizer step.
    """
    training = TrainingFlops(dense_forward)
    for stretch in stretches:
        forward = flops.forward({n: count / sizes[n] for n, count in stretch.nonzeros.items()})
        sparse = stretch.steps - stretch.dense_gradient_steps
        for dense, steps in ((True, stretch.dense_gradient_steps), (False, sparse)):
            parts = {n: flops.forward(d) for n, d in stretch.gradients.items()}
            if dense:  # of the network that is trained, which may be a larger one
                parts.setdefault("weight_gradient", flops.total)
            training.add(forward, batch * steps, dense_gradient=dense, **parts)
    return training


def epochs_for(
    budget: float,
    epochs: int,
    method: Composed,
    flops: LayerFlops,
    shapes: Mapping[str, torch.Size],
    dense_forward: float,
    per_epoch: int,
    first: Mapping[str, int] | None = None,
) -> int:
    """The most epochs that a budget pays for.

    Where layers compete while they train, the share of each is known only then, and the
    distribution's is taken: the FLOPs counted in training tell by how much that was wrong.

    Args:
        budget: training FLOPs as a multiple of dense training for ``epochs`` epochs.
        epochs: what the budget is a multiple of.
        method: the method, not started.
        flops: dense FLOPs of the model being trained, by layer.
        shapes: of the sparse weights.
        dense_forward: forward FLOPs of one sample in the dense model.
        per_epoch: optimizer steps of an epoch.
        first: as in :func:`sparsebench.sparsity.forecast.forecast`.

    Raises:
        UserError: the budget does not pay for one epoch.
    """
    sizes = {name: shape.numel() for name, shape in shapes.items()}

    def affordable(number: int) -> bool:
        stretches = forecast(method, shapes, number * per_epoch, per_epoch, first)
        try:
            relative = training_cost(stretches, flops, sizes, dense_forward, 1).relative
        except UserError:  # too short for the update window, and cheaper than any that is not
            return True
        return relative * number <= budget * epochs * (1 + 1e-9)

    if not affordable(1):
        raise UserError(
            f"training_flops={budget:g}: does not pay for one epoch of method={method.spec.name} "
            f"(epochs={epochs}, of which it is a multiple)"
        )
    low, high = 1, 2
    while high < MOST_EPOCHS and affordable(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if affordable(middle) else (low, middle)
    return low
