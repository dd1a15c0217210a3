"""The LightningModule of denoising autoencoders."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torchmetrics import MeanMetric

from sparsebench.sparsity.method import Method
from sparsebench.training.learner import Learner


class Denoiser(Learner):
    """Learns to give the input back that noise was added to."""

    def __init__(
        self, model: nn.Module, cfg: DictConfig, noise: float, method: Method | None = None
    ) -> None:
        """Wrap a model.

        Args:
            model: maps (batch, features) to (batch, features).
            cfg: the whole config.
            noise: deviation of the Gaussian noise on an input.
            method: the sparsity method.
        """
        super().__init__(model, cfg, {"loss": MeanMetric()}, method)
        self.noise = noise

    def train_loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Half the squared error of a sample, from a noisy input; mean over the batch."""
        x = batch[0]
        return _error(self(x + self.noise * torch.randn_like(x)), x)

    def evaluate(self, batch: Any) -> None:
        """Add a batch to the loss, without noise."""
        x = batch[0]
        self.evaluation["loss"].update(_error(self(x).float(), x), weight=len(x))


def _error(output: Tensor, x: Tensor) -> Tensor:
    return (output - x).square().sum(1).mean() / 2
