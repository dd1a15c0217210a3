"""The LightningModule of recovery training: next tokens, and what the unpruned model says."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from sparsebench.llm.recovery.optimizer import PulledAdamW
from sparsebench.llm.recovery.spec import RecoverySpec
from sparsebench.training.language import NextToken, cross_entropy, divergence, logits
from sparsebench.training.optimizers import build_optimizer, build_schedule


class Recoverer(NextToken):
    """(1 - d) cross-entropy + d KL(teacher || student), d being ``recovery.distill``."""

    def __init__(
        self, model: nn.Module, cfg: DictConfig, spec: RecoverySpec, teacher: nn.Module | None
    ) -> None:
        """Wrap a model.

        Args:
            model: pruned.
            cfg: the whole config, with an epoch of all steps.
            spec: the dials.
            teacher: the unpruned model; it is no part of checkpoints.
        """
        super().__init__(model, cfg)
        self.spec = spec
        self._teacher = (teacher,)  # in a tuple, so that it is no module of this one

    def train_loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """The loss on tokens (batch, length)."""
        (ids,), (teacher,), share = batch, self._teacher, self.spec.distill
        found = logits(self.model, ids)
        loss = cross_entropy(found, ids)
        if teacher is None or not share:
            return loss
        with torch.no_grad():
            theirs = logits(teacher, ids)
        return (1.0 - share) * loss + share * divergence(found, theirs, self.spec.temperature)

    def configure_optimizers(self) -> Any:
        """Those of the config; where the pull acts behind the momentum, an AdamW that has it."""
        if self.spec.decay_in != "after_momentum":
            return super().configure_optimizers()
        plain = build_optimizer(self.model, self.cfg.optimizer, fused=False)
        optimizer = PulledAdamW(plain.param_groups)
        steps = self.steps_per_epoch
        schedule = build_schedule(optimizer, self.cfg.schedule, steps, steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }
