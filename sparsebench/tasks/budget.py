"""Training of equal FLOPs: the number of epochs follows from a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from sparsebench.errors import UserError
from sparsebench.sparsity.composed import Composed
from sparsebench.sparsity.cost import epochs_for
from sparsebench.sparsity.examples import Examples
from sparsebench.sparsity.flops import LayerFlops
from sparsebench.sparsity.method import Method
from sparsebench.sparsity.session import Session
from sparsebench.sparsity.spec import SelectorSpec
from sparsebench.tasks.build import build_method


def budgeted(
    cfg: DictConfig,
    method: Method,
    flops: LayerFlops,
    weights: Mapping[str, nn.Parameter],
    dense_forward: float,
    samples: int,
    first: Callable[[], Mapping[str, int]],
) -> DictConfig:
    """The config with as many epochs as ``training_flops`` pays for.

    Args:
        cfg: the whole config; ``epochs`` is what the budget is a multiple of.
        method: the sparsity method, not started.
        flops: dense FLOPs of the model being trained, by layer.
        weights: the sparse parameters.
        dense_forward: forward FLOPs of one sample in the dense model.
        samples: training samples.
        first: finds the connections of each layer before the first step; asked where layers
            compete before training, since then no schedule tells.

    Raises:
        UserError: the budget is too small, or the cost of the method is not known beforehand.
    """
    if not isinstance(method, Composed):
        raise UserError(
            f"training_flops={cfg.training_flops:g}: the cost of method={cfg.method.name} is not "
            "known before training; composed methods only"
        )
    shapes = {name: weight.shape for name, weight in weights.items()}
    spec = method.spec
    compete = spec.initial_scope == "global" and spec.initial != "dense"
    stays = method.sparsity > 0.0 and spec.sparsity_schedule == "constant"
    epochs = epochs_for(
        cfg.training_flops, cfg.epochs, method, flops, shapes, dense_forward,
        max(samples // cfg.batch_size, 1), first() if compete and stays else None,
    )  # fmt: skip
    found = OmegaConf.create(cfg)
    assert isinstance(found, DictConfig)
    with open_dict(found):
        found.epochs = epochs
    return found


def first_counts(
    cfg: DictConfig, model: nn.Module, selector: SelectorSpec, examples: Examples
) -> dict[str, int]:
    """Connections of each layer before the first step.

    Args:
        cfg: the whole config.
        model: a copy of what will be trained, which becomes sparse.
        selector: of the sparse weights.
        examples: training batches, and the loss of any model on them.
    """
    with torch.random.fork_rng([]):
        session = Session(
            build_method(cfg), model, torch.optim.SGD(model.parameters(), lr=1.0),
            total_steps=2**30, seed=cfg.seed, selector=selector, examples=examples,
        )  # fmt: skip
    return session.masks.nonzeros
