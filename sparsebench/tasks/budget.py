"""Training of equal FLOPs: the number of epochs follows from a budget."""

from __future__ import annotations

from collections.abc import Mapping

from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from sparsebench.errors import UserError
from sparsebench.sparsity.composed import Composed
from sparsebench.sparsity.cost import epochs_for
from sparsebench.sparsity.flops import LayerFlops
from sparsebench.sparsity.method import Method


def budgeted(
    cfg: DictConfig,
    method: Method,
    flops: LayerFlops,
    weights: Mapping[str, nn.Parameter],
    dense_forward: float,
    samples: int,
) -> DictConfig:
    """The config with as many epochs as ``training_flops`` pays for.

    Args:
        cfg: the whole config; ``epochs`` is what the budget is a multiple of.
        method: the sparsity method, not started.
        flops: dense FLOPs of the model being trained, by layer.
        weights: the sparse parameters.
        dense_forward: forward FLOPs of one sample in the dense model.
        samples: training samples.

    Raises:
        UserError: the budget is too small, or the cost of the method is not known beforehand.
    """
    if not isinstance(method, Composed):
        raise UserError(
            f"training_flops={cfg.training_flops:g}: the cost of method={cfg.method.name} is not "
            "known before training; composed methods only"
        )
    shapes = {name: weight.shape for name, weight in weights.items()}
    epochs = epochs_for(
        cfg.training_flops, cfg.epochs, method, flops, shapes, dense_forward,
        max(samples // cfg.batch_size, 1),
    )  # fmt: skip
    found = OmegaConf.create(cfg)
    assert isinstance(found, DictConfig)
    with open_dict(found):
        found.epochs = epochs
    return found
