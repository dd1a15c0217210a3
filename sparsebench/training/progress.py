"""Progress of one run: a live line with time left on a terminal, silence elsewhere."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig


class Progress(Callback):
    """A bar over all optimizer steps, on stderr, refreshed a few times a second."""

    def __init__(self, cfg: DictConfig) -> None:
        """Name the run."""
        self._name = f"{cfg.method.name} {cfg.model.name} {cfg.data.name}"
        self._bar: Any = None
        self._task: Any = None

    @staticmethod
    def wanted(cfg: DictConfig) -> bool:
        """Whether there is anybody to see it: not if quiet, not if stderr is no terminal."""
        return not cfg.quiet and sys.stderr.isatty()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        if not trainer.is_global_zero:
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._bar.start()
        total = int(trainer.estimated_stepping_batches)
        self._task = self._bar.add_task(self._name, total=total, completed=trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move it."""
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close it."""
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Close it."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
