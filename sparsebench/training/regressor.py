"""The LightningModule of forecasters."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig
from torch import Tensor, nn
from torchmetrics import MeanMetric

from sparsebench.sparsity.method import Method
from sparsebench.training.learner import Learner


class Regressor(Learner):
    """Learns outputs by their mean squared error."""

    def __init__(self, model: nn.Module, cfg: DictConfig, method: Method | None = None) -> None:
        """Wrap a model.

        Args:
            model: maps (batch, *input_shape) to (batch, outputs).
            cfg: the whole config.
            method: the sparsity method.
        """
        super().__init__(model, cfg, {"loss": MeanMetric()}, method)

    def train_loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Mean squared error over batch and outputs."""
        x, y = batch
        return nn.functional.mse_loss(self(x), y)

    def evaluate(self, batch: Any) -> None:
        """Add a batch to the loss."""
        x, y = batch
        self.evaluation["loss"].update(nn.functional.mse_loss(self(x).float(), y), weight=len(y))
