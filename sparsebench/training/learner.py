"""What the training loop asks of any task's LightningModule: a loss, and figures of a test."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from omegaconf import DictConfig
from torch import Tensor, nn
from torchmetrics import Metric

from sparsebench.errors import Diverged
from sparsebench.sparsity.composed import rounds_of
from sparsebench.sparsity.method import Method
from sparsebench.training.optimizers import build_optimizer, build_schedule

_PLAIN = frozenset(
    {"_current_fx_name", "_loss_sum", "_loss_count", "extra_samples", "extra_passes"}
)


class Learner(LightningModule):
    """Trains one network; what it measures is read by callbacks.

    A task says what it learns by two methods, :meth:`train_loss` and :meth:`evaluate`. Whatever
    they draw comes from torch's global generator, which a checkpoint holds.

    Attributes:
        monitor: the figure of a validation that early stopping watches.
        mode: whether more of it is better (``max``) or less (``min``).
        last_validation: figures of the last validation.
        steps_per_epoch: optimizer steps of an epoch; to be set before training.
        extra_samples: samples that the last step learned beside its batch; they cost FLOPs.
        extra_passes: forward passes of one sample, or passes that cost as much, beside training
            since they were last counted.
    """

    monitor: ClassVar[str] = "loss"
    mode: ClassVar[str] = "min"

    def __init__(
        self,
        model: nn.Module,
        cfg: DictConfig,
        evaluation: Mapping[str, Metric],
        method: Method | None = None,
    ) -> None:
        """Wrap a model.

        Args:
            model: the network.
            cfg: the whole config.
            evaluation: figures of a validation or test by name, for :meth:`evaluate` to update.
            method: the sparsity method, whose rounds the learning rate follows if it has any.
        """
        super().__init__()
        self.model = model
        self.cfg = cfg
        self.method = method
        #: A model may have a loss of its own, that of the last forward pass, added to the task's.
        self._auxiliary = getattr(model, "auxiliary_loss", None)
        if cfg.trainer.compile:
            model.compile()  # in place: a wrapper would give every weight a second name
        self.evaluation: dict[str, Metric] = dict(evaluation)
        self._on_device = nn.ModuleDict(self.evaluation)  # these move with the model
        self.last_validation: dict[str, float] = {}
        self.steps_per_epoch = 0
        self.extra_samples = 0
        self.extra_passes = 0
        self._loss_sum = torch.zeros(())
        self._loss_count = 0

    @property
    def schedule_steps(self) -> int:
        """Optimizer steps of one schedule of the learning rate."""
        return int(self.steps_per_epoch * self.cfg.epochs)

    # --- what a task says ------------------------------------------------------------------

    def train_loss(self, batch: Any) -> Tensor:
        """Mean loss of the model on a training batch, to be minimised."""
        raise NotImplementedError

    def evaluate(self, batch: Any) -> None:
        """Add a batch of a validation or test to the figures of ``self.evaluation``."""
        raise NotImplementedError

    def example_loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean loss on a training batch, for methods that look at some before training."""
        return self.train_loss(batch)

    def row(self) -> dict[str, float]:
        """Further figures of an epoch's row, the same names in each."""
        return {}

    # --- the rest is the same for all --------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; names that change at each step go round ``nn.Module``'s slow way.

        Lightning writes the name of each hook it calls into the module, some sixty times a step.
        """
        if name in _PLAIN:
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def forward(self, *inputs: Any) -> Any:
        """What the network gives."""
        return self.model(*inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of one micro-batch."""
        loss = self.train_loss(batch)
        if self._auxiliary is not None:
            loss = loss + self._auxiliary()
        self._loss_sum += loss.detach()
        self._loss_count += 1
        return loss

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Batches are tensors, on the CPU already where that is the device."""
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

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the evaluation."""
        self.evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Keep the figures for the epoch's row, and log them if early stopping watches one."""
        self.last_validation = self.take_evaluation()
        if self.cfg.trainer.patience:  # logging takes longer than a small validation itself
            self.log_dict({f"validation/{k}": v for k, v in self.last_validation.items()})

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the evaluation."""
        self.evaluate(batch)

    def take_evaluation(self) -> dict[str, float]:
        """The figures since the last call."""
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
        total = self.schedule_steps
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
