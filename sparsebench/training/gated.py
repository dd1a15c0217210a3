"""The LightningModule of a classifier with gates on its filters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from sparsebench.models.gates import Gates
from sparsebench.sparsity.examples import undisturbed
from sparsebench.sparsity.method import Method
from sparsebench.training.classifier import Classifier


@dataclass(frozen=True)
class Timing:
    """When gates shut and when they stop learning, in optimizer steps, and how fast they learn."""

    shut: int
    freeze: int
    weight: float


class GatedClassifier(Classifier):
    """Trains a network, and beside it the gates on its filters.

    Gates watch until the step ``shut``; from there on, filters that do not pass are zero, in
    training and in evaluation. From ``freeze`` on the predictors stay as they are.

    Attributes:
        promised: FLOPs of an input if the filters that the network needed before the gates shut
            were the only ones, without the predictors; what r promises before it is paid for.
    """

    def __init__(
        self,
        gates: Gates,
        timing: Timing,
        images: Callable[[], Iterable[tuple[Tensor, Tensor]]],
        cfg: DictConfig,
        num_classes: int,
        input_ndim: int,
        method: Method | None = None,
    ) -> None:
        """Wrap a network with gates.

        Args:
            gates: of the network.
            timing: of the gates.
            images: gives batches of training images for what is promised, without augmentation.
            cfg: the whole config.
            num_classes: number of classes.
            input_ndim: number of dimensions of one input.
            method: the sparsity method.
        """
        super().__init__(gates.model, cfg, num_classes, input_ndim, method)
        self.gates, self.timing, self.images = gates, timing, images
        self.promised: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Logits of inputs, with the gates as they are at this step."""
        self.gates.rule.shut = self.global_step >= self.timing.shut
        return super().forward(x)

    def train_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Loss of the network plus that of the predictors."""
        if self.promised is None and self.global_step >= self.timing.shut:
            self.promised = self._promise()
        loss = super().train_loss(batch)
        if self.gates.rule.kind != "predicted":
            return loss
        weight = 0.0 if self.frozen else self.timing.weight
        return loss + weight * self.gates.loss()

    @property
    def frozen(self) -> bool:
        """Whether the predictors have stopped learning."""
        return self.global_step >= self.timing.freeze

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Optimizers skip what has no gradient: frozen predictors, decay and momentum included."""
        if self.frozen:
            for parameter in self.gates.parameters():
                parameter.grad = None

    def _promise(self) -> float:
        with undisturbed(self.model), torch.no_grad():
            self.model.eval()
            self.gates.rule.shut = False
            costs = []
            for x, _ in self.images():
                Classifier.forward(self, x.to(self.device))
                costs.append(self.gates.flops(self.gates.truth()))
        return float(torch.cat(costs).mean()) - self.gates.overhead

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What was promised is part of what resuming needs."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["promised"] = self.promised

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back."""
        super().on_load_checkpoint(checkpoint)
        self.promised = checkpoint["promised"]
