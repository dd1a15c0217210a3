"""Optimizers and learning-rate schedules from their configs."""

from __future__ import annotations

import math
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from sparsebench.config.importing import resolve
from sparsebench.errors import UserError, bad_value
from sparsebench.sparsity.time import Duration

#: The dials of each optimizer; any other dial set away from its default is refused.
DIALS = {
    "sgd": ("momentum", "nesterov"),
    "adam": ("beta1", "beta2", "eps"),
    "adamw": ("beta1", "beta2", "eps"),
}
SCHEDULES = ("cosine", "step", "linear", "one_cycle", "constant")


def check_optimizer_config(cfg: DictConfig) -> None:
    """Refuse an optimizer that does not exist, or a dial that it does not have."""
    from sparsebench.config.schema import OptimizerConfig

    optimizer, defaults = cfg.optimizer, OptimizerConfig()
    if "." in optimizer.name:
        return
    if optimizer.name not in DIALS:
        raise bad_value("optimizer", optimizer.name, f"one of {', '.join(DIALS)}", DIALS)
    own = (*DIALS[optimizer.name], "name", "lr", "weight_decay", "decay_norms")
    for dial, value in optimizer.items():
        if dial not in own and value != getattr(defaults, str(dial)):
            raise UserError(
                f"optimizer.{dial}={value}: optimizer={optimizer.name} has no such dial"
            )


def build_optimizer(
    model: nn.Module, config: DictConfig, allow: tuple[str, ...] = ()
) -> torch.optim.Optimizer:
    """The optimizer over all parameters that learn.

    With ``decay_norms=false``, biases and norms (parameters of one dimension) get no decay.
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
        return torch.optim.SGD(groups, momentum=config.momentum, nesterov=nesterov, **common)
    if config.name in ("adam", "adamw"):
        kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
        return kind(groups, betas=(config.beta1, config.beta2), eps=config.eps, **common)
    custom: Any = resolve(config.name, "optimizer.name", allow)
    optimizer: torch.optim.Optimizer = custom(groups, **common)
    return optimizer


def build_schedule(
    optimizer: torch.optim.Optimizer, config: DictConfig, total_steps: int, steps_per_epoch: int
) -> LambdaLR:
    """The learning-rate schedule, stepped after each optimizer step."""
    if config.name not in SCHEDULES:
        raise bad_value("schedule", config.name, f"one of {', '.join(SCHEDULES)}", SCHEDULES)
    warmup = Duration.parse(config.warmup, "schedule.warmup").steps(total_steps, steps_per_epoch)
    if warmup >= total_steps:
        raise bad_value("schedule.warmup", config.warmup, f"training has {total_steps} steps")
    milestones = [
        Duration.parse(m, "schedule.milestones").steps(total_steps, steps_per_epoch)
        for m in config.milestones
    ]

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = (step - warmup) / max(total_steps - warmup, 1)
        if config.name == "step":
            return float(config.gamma ** sum(step >= m for m in milestones))
        return _curve(config.name, min(progress, 1.0), config.final)

    return LambdaLR(optimizer, factor)


def _curve(name: str, progress: float, final: float) -> float:
    """Share of the peak rate at a progress in [0, 1]."""
    if name == "constant":
        return 1.0
    if name == "linear":
        return 1.0 - (1.0 - final) * progress
    if name == "cosine":
        return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
    # one cycle (arXiv 1708.07120) in the form torch's OneCycleLR gives it: up over 30 % from
    # 1/25 of the peak, then down to 1/10,000 of where it began
    start, end, rise = 1 / 25, 1 / 25 / 1e4, 0.3
    if progress < rise:
        return 1.0 + (start - 1.0) * 0.5 * (1.0 + math.cos(math.pi * progress / rise))
    down = (progress - rise) / (1.0 - rise)
    return end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * down))
