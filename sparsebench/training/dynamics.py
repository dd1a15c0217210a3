"""The LightningModule of networks of dynamics."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from torchmetrics import MeanMetric

from sparsebench.models.relu_dynamics import ReluDynamics
from sparsebench.sparsity.method import Method
from sparsebench.training.learner import Learner


@dataclass(frozen=True)
class Stages:
    """How the number of ReLUs falls.

    Attributes:
        units: hidden units, all of them ReLUs until ``warmup``.
        relus: how many may be left.
        stages: in how many steps.
        warmup: share of training with all ReLUs, before the first stage.
        freeze: share of training after which the choices are made.
    """

    units: int
    relus: int
    stages: int
    warmup: float
    freeze: float

    def budget(self, stage: int) -> int:
        """ReLUs allowed at the end of a stage, from 1; the same share goes in each."""
        if stage >= self.stages:
            return self.relus
        share = max(self.relus, 1) / self.units
        return max(self.relus, round(self.units * math.pow(share, stage / self.stages)))

    def stage(self, progress: float) -> int:
        """0 before the first, then that which is on; one more than ``stages`` when frozen."""
        if progress < self.warmup:
            return 0
        part = (progress - self.warmup) / (self.freeze - self.warmup)
        return min(int(part * self.stages + 1e-9), self.stages) + 1


class Dynamics(Learner):
    """Learns to predict the states of whole trajectories, with ever fewer ReLUs."""

    def __init__(
        self,
        model: ReluDynamics,
        cfg: DictConfig,
        scale: Tensor,
        stages: Stages | None,
        penalty: float,
        temperature: float,
        hard: bool,
        method: Method | None = None,
    ) -> None:
        """Wrap a model.

        Args:
            model: the network.
            cfg: the whole config.
            scale: [states], errors are measured in; the deviation of a step is usual.
            stages: how the number of ReLUs falls; None if they all stay.
            penalty: on the expected number of ReLUs above the stage's, as a share of all.
            temperature: of the relaxed choices.
            hard: one choice each forward, the gradient that of the relaxed ones.
            method: the sparsity method.
        """
        super().__init__(model, cfg, {"loss": MeanMetric(), "one_step": MeanMetric()}, method)
        self.register_buffer("scale", scale, persistent=False)
        self.stages, self.penalty = stages, penalty
        self.temperature, self.hard = temperature, hard
        if stages is None:
            for gates in model.gate():
                gates.logits.requires_grad = False

    def train_loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Mean squared error over a trajectory, and the penalty on ReLUs.

        Choices that are not learned yet get a gradient of 0, as momentum needs one from the start.
        """
        model: Any = self.model
        stages = self.stages
        stage = 0 if stages is None else stages.stage(self._progress())
        if stages is None:
            return self._error(batch)
        if stage == 0:
            waiting: Tensor = self._error(batch) + 0.0 * model.expected_relus()
            return waiting
        if stage > 1 and int(model.budget) > stages.budget(stage - 1):
            model.restrict(stages.budget(stage - 1))
        if stage > stages.stages:
            return self._error(batch)
        above = (model.expected_relus() - stages.budget(stage)).relu() / stages.units
        with model.drawn(self.temperature, self.hard):
            loss: Tensor = self._error(batch) + self.penalty * above
            return loss

    def _progress(self) -> float:
        total: int = self.steps_per_epoch * self.cfg.epochs
        return self.global_step / max(total, 1)

    def _error(self, batch: tuple[Tensor, ...]) -> Tensor:
        return self._errors(batch).mean()

    def _errors(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Squared errors [batch, length, n], relative to the scale."""
        scale: Any = self.scale
        found: Tensor = ((self.predict(batch).float() - batch[2]) / scale).square()
        return found

    def predict(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Predicted states [batch, length, n], each from the one predicted before it."""
        x, controls = batch[0], batch[1]
        found = []
        for t in range(controls.shape[1]):
            x = self(torch.cat([x, controls[:, t]], 1))
            found.append(x)
        return torch.stack(found, 1)

    def evaluate(self, batch: Any) -> None:
        """Add a batch to the errors over the trajectory and of its first step."""
        error = self._errors(batch)
        self.evaluation["loss"].update(error.mean(), weight=len(error))
        self.evaluation["one_step"].update(error[:, 0].mean(), weight=len(error))
