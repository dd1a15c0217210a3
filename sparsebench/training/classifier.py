"""The LightningModule of image classification."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from omegaconf import DictConfig
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from sparsebench.errors import Diverged
from sparsebench.sparsity.composed import rounds_of
from sparsebench.sparsity.method import Method
from sparsebench.training.optimizers import build_optimizer, build_schedule

_PLAIN = frozenset({"_current_fx_name", "_loss_sum", "_loss_count"})


class Classifier(LightningModule):
    """Cross-entropy training of a classifier; what it measures is read by callbacks.

    Attributes:
        last_validation: loss, accuracy and top-5 accuracy of the last validation.
        steps_per_epoch: optimizer steps of an epoch; to be set before training.
    """

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
        super().__init__()
        self.model = model
        self.cfg = cfg
        self.method = method
        if cfg.trainer.compile:
            model.compile()  # in place: a wrapper would give every weight a second name
        smoothing = cfg.trainer.label_smoothing
        self.train_criterion = nn.CrossEntropyLoss(label_smoothing=smoothing)
        self.mix = _mixer(cfg.trainer, num_classes)
        self._images = input_ndim == 3 and cfg.trainer.channels_last
        top_k = min(5, num_classes)
        self.evaluation: dict[str, Metric] = {
            "loss": MeanMetric(),
            "accuracy": MulticlassAccuracy(num_classes, average="micro"),
            "top5": MulticlassAccuracy(num_classes, average="micro", top_k=top_k),
        }
        self._on_device = nn.ModuleDict(self.evaluation)  # these move with the model
        self.last_validation: dict[str, float] = {}
        self.steps_per_epoch = 0
        self._loss_sum = torch.zeros(())
        self._loss_count = 0

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; names that change at each step go round ``nn.Module``'s slow way.

        Lightning writes the name of each hook it calls into the module, some sixty times a step.
        """
        if name in _PLAIN:
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, num_classes) of inputs (batch, *input_shape)."""
        if self._images:
            x = x.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.model(x)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of one micro-batch."""
        x, y = batch
        if self.mix is not None:
            x, y = self.mix(x, y)
        loss: Tensor = self.train_criterion(self(x), y)
        self._loss_sum += loss.detach()
        self._loss_count += 1
        return loss

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Batches are two tensors, on the CPU already where that is the device."""
        if device.type == "cpu":
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_validation_start(self) -> None:
        """A loss that is NaN or infinite anywhere in the epoch ends the run."""
        self.check_divergence()

    def check_divergence(self) -> float:
        """The mean loss of this epoch so far, over all ranks.

        Raises:
            Diverged: it is not finite; with the step at which it was noticed.
        """
        mean = self._loss_sum / max(self._loss_count, 1)
        if self.trainer.world_size > 1:
            mean = self.trainer.strategy.reduce(mean, reduce_op="mean")
        value = float(mean)
        if not math.isfinite(value):
            raise Diverged(self.global_step, value)
        return value

    def take_train_loss(self) -> float:
        """Mean loss since the last call.

        Raises:
            Diverged: it is not finite.
        """
        value = self.check_divergence()
        self._loss_sum = torch.zeros_like(self._loss_sum)
        self._loss_count = 0
        return value

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to the evaluation."""
        x, y = batch
        logits = self(x).float()
        self.evaluation["loss"].update(nn.functional.cross_entropy(logits, y), weight=len(y))
        self.evaluation["accuracy"].update(logits, y)
        self.evaluation["top5"].update(logits, y)

    def on_validation_epoch_end(self) -> None:
        """Keep the figures for the epoch's row, and log them if early stopping watches one."""
        self.last_validation = self.take_evaluation()
        if self.cfg.trainer.patience:  # logging takes longer than a small validation itself
            self.log_dict({f"validation/{k}": v for k, v in self.last_validation.items()})

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to the evaluation."""
        self.validation_step(batch, batch_idx)

    def take_evaluation(self) -> dict[str, float]:
        """Loss, accuracy and top-5 accuracy since the last call."""
        values = {name: float(metric.compute()) for name, metric in self.evaluation.items()}
        for metric in self.evaluation.values():
            metric.reset()
        return values

    def configure_optimizers(self) -> Any:
        """Optimizer and schedule of the config."""
        # asking the trainer for the steps here would set its data up before the checkpoint's
        # place in them is known, and a resumed epoch would begin anew
        per_epoch = self.steps_per_epoch
        fused = self.cfg.trainer.precision != "16"
        allow = tuple(self.cfg.allow)
        optimizer = build_optimizer(self.model, self.cfg.optimizer, allow, fused=fused)
        total = per_epoch * self.cfg.epochs
        rounds = rounds_of(self.method, total, per_epoch)
        schedule = build_schedule(optimizer, self.cfg.schedule, total, per_epoch, rounds)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The running loss of the epoch, that of each rank, is part of what resuming needs."""
        sums = self._loss_sum.reshape(1)
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.all_gather(sums).flatten()
        checkpoint["train_loss"] = (sums.cpu(), self._loss_count)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back the running loss."""
        sums, self._loss_count = checkpoint["train_loss"]
        mine = sums[self.trainer.global_rank]
        self._loss_sum = mine.to(self.trainer.strategy.root_device, copy=True)

    def setup(self, stage: str) -> None:
        """Put what is not a parameter on the device."""
        self._loss_sum = self._loss_sum.to(self.device)
        if self._images:
            self.model.to(memory_format=torch.channels_last)


def _accuracy(num_classes: int, top_k: int) -> MulticlassAccuracy:
    return MulticlassAccuracy(num_classes, average="micro", top_k=top_k, validate_args=False)


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
