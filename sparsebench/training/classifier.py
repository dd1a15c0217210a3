"""The LightningModule of image classification."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from sparsebench.sparsity.examples import cross_entropy
from sparsebench.sparsity.method import Method
from sparsebench.training.learner import Learner


class Classifier(Learner):
    """Cross-entropy training of a classifier."""

    monitor = "accuracy"
    mode = "max"

    def __init__(
        self,
        model: nn.Module,
        cfg: DictConfig,
        num_classes: int,
        input_ndim: int,
        method: Method | None = None,
    ) -> None:
        """Wrap a model.

        Args:
            model: maps (batch, *input_shape) to (batch, num_classes) logits.
            cfg: the whole config.
            num_classes: number of classes.
            input_ndim: number of dimensions of one input, 3 for images.
            method: the sparsity method, whose rounds the learning rate follows if it has any.
        """
        top_k = min(5, num_classes)
        evaluation = {
            "loss": MeanMetric(),
            "accuracy": MulticlassAccuracy(num_classes, average="micro"),
            "top5": MulticlassAccuracy(num_classes, average="micro", top_k=top_k),
        }
        super().__init__(model, cfg, evaluation, method)
        smoothing = cfg.trainer.label_smoothing
        self.train_criterion = nn.CrossEntropyLoss(label_smoothing=smoothing)
        self.mix = _mixer(cfg.trainer, num_classes)
        self._images = input_ndim == 3 and cfg.trainer.channels_last

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, num_classes) of inputs (batch, *input_shape)."""
        if self._images:
            x = x.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.model(x)
        return logits

    def train_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy on a batch (x, y), mixed and smoothed as configured."""
        x, y = batch
        if self.mix is not None:
            x, y = self.mix(x, y)
        loss: Tensor = self.train_criterion(self(x), y)
        return loss

    def example_loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy, neither mixed nor smoothed."""
        return cross_entropy(model, batch)

    def evaluate(self, batch: tuple[Tensor, Tensor]) -> None:
        """Add a batch to loss, accuracy and top-5 accuracy."""
        x, y = batch
        logits = self(x).float()
        self.evaluation["loss"].update(nn.functional.cross_entropy(logits, y), weight=len(y))
        self.evaluation["accuracy"].update(logits, y)
        self.evaluation["top5"].update(logits, y)

    def setup(self, stage: str) -> None:
        """Put what is not a parameter on the device."""
        super().setup(stage)
        if self._images:
            self.model.to(memory_format=torch.channels_last)


def _mixer(config: DictConfig, num_classes: int) -> Any:
    """Mixup and CutMix by torchvision, one of them at random for each batch."""
    if not config.mixup and not config.cutmix:
        return None
    from torchvision.transforms import v2

    choices: list[Any] = []
    if config.mixup:
        choices.append(v2.MixUp(alpha=config.mixup, num_classes=num_classes))
    if config.cutmix:
        choices.append(v2.CutMix(alpha=config.cutmix, num_classes=num_classes))
    return choices[0] if len(choices) == 1 else v2.RandomChoice(choices)
