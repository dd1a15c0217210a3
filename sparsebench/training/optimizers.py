"""Optimizers and learning-rate schedules from their configs."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from sparsebench.config.importing import resolve
from sparsebench.errors import UserError, bad_value
from sparsebench.sparsity.time import Duration
from sparsebench.sparsity.window import Window

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("cosine", "step", "linear", "one_cycle", "constant")


def build_optimizer(
    model: nn.Module, config: DictConfig, allow: tuple[str, ...] = (), *, fused: bool = True
) -> torch.optim.Optimizer:
    """The optimizer over all parameters that learn.

    With ``decay_norms=false``, biases and norms (parameters of one dimension) get no decay.
    An optimizer by import path gets ``lr`` and ``weight_decay``. Torch's own run fused, in a
    third of the time for small layers; not for float16, where Lightning has to unscale the
    gradients itself before it clips them.

    Raises:
        UserError: no such optimizer, or one that does not take these.
    """
    learning = [p for p in model.parameters() if p.requires_grad]
    flat = [p for p in learning if p.ndim <= 1] if not config.decay_norms else []
    spared = {id(p) for p in flat}
    groups: list[dict[str, Any]] = [{"params": [p for p in learning if id(p) not in spared]}]
    if flat:
        groups.append({"params": flat, "weight_decay": 0.0})
    common = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.name == "sgd":
        nesterov = config.nesterov and config.momentum > 0
        return torch.optim.SGD(
            groups, momentum=config.momentum, nesterov=nesterov, fused=fused, **common
        )
    if config.name in ("adam", "adamw"):
        kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
        betas = (config.beta1, config.beta2)
        return kind(groups, betas=betas, eps=config.eps, fused=fused, **common)
    if "." not in config.name:
        allowed = f"one of {', '.join(OPTIMIZERS)}, or the import path of your own"
        raise bad_value("optimizer.name", config.name, allowed, OPTIMIZERS)
    return _custom(config.name, groups, common, allow)


def _custom(
    name: str, groups: list[dict[str, Any]], common: dict[str, float], allow: tuple[str, ...]
) -> torch.optim.Optimizer:
    kind: Any = resolve(name, "optimizer.name", allow)
    try:
        optimizer = kind(groups, **common)
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer.name={name}: {error}") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(f"optimizer.name={name}: is no torch.optim.Optimizer")
    return optimizer


def build_schedule(
    optimizer: torch.optim.Optimizer,
    config: DictConfig,
    total_steps: int,
    steps_per_epoch: int,
    rounds: Window | None = None,
) -> LambdaLR:
    """The learning-rate schedule, stepped after each optimizer step.

    With ``rounds``, each of them is a training of its own to the schedule (percent are percent
    of it), which begins where the round does.

    Raises:
        UserError: no such schedule, or a warm-up longer than training.
    """
    if config.name not in SCHEDULES:
        raise bad_value("schedule", config.name, f"one of {', '.join(SCHEDULES)}", SCHEDULES)

    @cache
    def curve(length: int) -> Callable[[int], float]:
        return _factors(config, length, steps_per_epoch)

    def factor(step: int) -> float:
        place, length = rounds.place(step, total_steps) if rounds else (step, total_steps)
        return curve(length)(place)

    for step in (0, total_steps):  # what is wrong with the first or the last is said now
        factor(step)
    return LambdaLR(optimizer, factor)


def _factors(config: DictConfig, total_steps: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Share of the peak rate at each step of a training of so many."""
    warmup = Duration.parse(config.warmup, "schedule.warmup").steps(total_steps, steps_per_epoch)
    if warmup >= total_steps:
        raise bad_value("schedule.warmup", config.warmup, f"training has {total_steps} steps")
    milestones = [
        Duration.parse(m, "schedule.milestones").steps(total_steps, steps_per_epoch)
        for m in config.milestones
    ]

    # plain values: looking a key up in the config takes longer than the arithmetic
    name, gamma, final = str(config.name), float(config.gamma), float(config.final)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if name == "step":
            return float(gamma ** sum(step >= m for m in milestones))
        if name == "one_cycle":
            return _one_cycle(step - warmup, total_steps - warmup)
        return _curve(name, (step - warmup) / (total_steps - warmup), final)

    return factor


def _curve(name: str, progress: float, final: float) -> float:
    """Share of the peak rate at a progress in [0, 1]."""
    if name == "constant":
        return 1.0
    if name == "linear":
        return 1.0 - (1.0 - final) * progress
    return final + (1.0 - final) * _down(progress)


def _one_cycle(step: int, steps: int) -> float:
    """One cycle (arXiv 1708.07120) as ``OneCycleLR`` has it, with the momentum left alone.

    Up over 30 % of the steps from 1/25 of the peak, then down to 1/10,000 of where it began.
    """
    start, end, top, last = 1 / 25, 1 / 25 / 1e4, 0.3 * steps - 1, steps - 1
    if step <= top:
        return 1.0 + (start - 1.0) * _down(step / top if top else 1.0)
    return end + (1.0 - end) * _down((step - top) / (last - top) if last > top else 1.0)


def _down(progress: float) -> float:
    """Half a cosine from 1 to 0."""
    return 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
