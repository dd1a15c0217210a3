"""What would go wrong in training, found out before anything is written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping

from omegaconf import DictConfig
from torch import nn

from sparsebench.data import DataSets
from sparsebench.errors import UserError, bad_value
from sparsebench.sparsity.composed import Composed, rounds_of
from sparsebench.sparsity.forecast import counts
from sparsebench.sparsity.method import Method
from sparsebench.sparsity.optimizer_state import check_optimizer
from sparsebench.training.optimizers import build_optimizer, build_schedule


def check_run(
    cfg: DictConfig,
    sets: DataSets,
    model: nn.Module,
    method: Method,
) -> None:
    """Lay out the whole training without a step of it.

    Args:
        cfg: the whole config.
        sets: the data, loaded.
        model: the network.
        method: the sparsity method, not started.

    Raises:
        UserError: data, batch, optimizer, schedule, update window or machine do not fit.
    """
    _check_described(cfg, sets)
    per_epoch = len(sets.train) // cfg.batch_size
    if per_epoch == 0:
        raise UserError(
            f"batch_size={cfg.batch_size}: there are {len(sets.train)} images to train on"
        )
    _check_mixing(cfg, sets)
    _check_compiler(cfg)
    optimizer = build_optimizer(model, cfg.optimizer, tuple(cfg.allow))
    check_optimizer(optimizer)
    total = per_epoch * cfg.epochs
    if isinstance(method, Composed):
        method.window(total, per_epoch)
    build_schedule(optimizer, cfg.schedule, total, per_epoch, rounds_of(method, total, per_epoch))


def check_model(
    cfg: DictConfig,
    model: nn.Module,
    method: Method,
    weights: Mapping[str, nn.Parameter],
    like: tuple[tuple[int, ...], int],
    refusal: Callable[[nn.Module], str | None],
) -> None:
    """What is wrong whatever the data hold.

    Args:
        cfg: the whole config.
        model: the network.
        method: the sparsity method, not started.
        weights: the sparse parameters.
        like: shape of an input, and number of outputs.
        refusal: why a model can't be trained on such data; None if it can.

    Raises:
        UserError: the counts can't be met, or a model of the user's own does not fit the data.
    """
    if isinstance(method, Composed):
        shapes = {name: parameter.shape for name, parameter in weights.items()}
        if method.sparsity > 0.0:
            method.structure.check(
                {n: tuple(shape) for n, shape in shapes.items()}, method.sparsity
            )
        if method.spec.scope == "layer" or method.spec.sparsity_schedule == "constant":
            counts(method, shapes, method.sparsity)
    if str(cfg.model["_target_"]).startswith("sparsebench."):
        return
    why = refusal(model)
    model.train()
    if why:
        raise UserError(
            f"model={cfg.model.name}: does not fit data={cfg.data.name}, whose inputs are "
            f"{list(like[0])} in {like[1]} classes: {why}"
        )


def _check_described(cfg: DictConfig, sets: DataSets) -> None:
    """A builder of the user's own may give other data than the config says."""
    for key, found in (("num_classes", sets.num_classes), ("input_shape", list(sets.input_shape))):
        said = cfg.data[key]
        if said is not None and said != found:
            raise bad_value(f"data.{key}", said, f"the data have {found}")


def _check_mixing(cfg: DictConfig, sets: DataSets) -> None:
    for key in ("mixup", "cutmix"):
        if cfg.trainer[key] and len(sets.input_shape) != 3:
            raise UserError(
                f"trainer.{key}={cfg.trainer[key]}: mixes images, and data '{sets.name}' has "
                f"inputs of shape {sets.input_shape}"
            )


def _check_compiler(cfg: DictConfig) -> None:
    """torch.compile makes C++ (CPU) or launches through C (GPU): both need a compiler."""
    if not cfg.trainer.compile:
        return
    wanted = os.environ.get("CXX", "g++")
    if not any(shutil.which(name) for name in (wanted, "g++", "clang++")):
        raise UserError(
            f"trainer.compile=true: torch.compile needs a C++ compiler, and there is no '{wanted}' "
            "here; install g++, or name yours in the environment variable CXX"
        )
