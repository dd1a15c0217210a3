"""Put a Lightning trainer together for one run, and fit."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.profilers import PassThroughProfiler
from omegaconf import DictConfig

from sparsebench.data import DataSets, EvalLoader, TrainLoader
from sparsebench.training.checkpoint import Checkpoint, WholeFiles, find_checkpoint
from sparsebench.training.ema import Ema
from sparsebench.training.learner import Learner
from sparsebench.training.measure import Measure
from sparsebench.training.progress import Progress
from sparsebench.training.ranks import OURS, local_rank
from sparsebench.training.sparsify import Sparsify

PRECISIONS = {"32": "32-true", "64": "64-true", "bf16": "bf16-mixed", "16": "16-mixed"}


@dataclass
class Fitted:
    """A trained model and what was measured on the way."""

    trainer: Trainer
    module: Learner
    sparsify: Sparsify
    measure: Measure
    checkpoint: Checkpoint
    seconds: float
    notes: list[str]


class Patience(EarlyStopping):
    """Early stopping that a resumed run remembers."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training that was over when the checkpoint was written does not go on."""
        if self.stopped_epoch:
            trainer.should_stop = True


def fit(
    cfg: DictConfig,
    folder: Path,
    sets: DataSets,
    module: Learner,
    sparsify: Sparsify,
    measure: Measure,
    loggers: Sequence[Callback],
) -> Fitted:
    """Train to the end, from the newest checkpoint if there is one.

    Raises:
        Diverged: the loss is not finite.
        Interrupted: a signal came; the checkpoint is written.
    """
    quiet_lightning()
    resume = find_checkpoint(folder, folder.name, first=local_rank() == 0)
    checkpoint = Checkpoint(folder, folder.name, cfg.trainer.checkpoint_every)
    callbacks: list[Callback] = [sparsify]
    if cfg.trainer.ema:
        callbacks.append(Ema(cfg.trainer.ema, sparsify))
    callbacks += [measure, *loggers]
    if Progress.wanted(cfg):  # Lightning asks each callback at some dozen points of a step
        callbacks.append(Progress(cfg))
    if cfg.trainer.patience and sets.validation is not None:
        monitor, patience = f"validation/{module.monitor}", cfg.trainer.patience
        callbacks.append(
            Patience(monitor, patience=patience, mode=module.mode, check_on_train_epoch_end=False)
        )  # after validation: at the end of the epoch the others must know that it is the last
    callbacks.append(checkpoint)
    trainer = build_trainer(cfg, callbacks)
    checkpoint.notes = _differences(resume, trainer.strategy.root_device.type)
    loader = train_loader(cfg, sets, trainer)
    module.steps_per_epoch = len(loader) // cfg.trainer.accumulate
    begin = time.perf_counter()
    trainer.fit(
        module,
        train_dataloaders=loader,
        val_dataloaders=eval_loader(cfg, sets.validation, trainer),
        ckpt_path=resume,
        weights_only=True,
    )
    if sparsify.session is None:  # the checkpoint was that of the last epoch
        for callback in callbacks[:-1]:
            callback.on_train_start(trainer, module)
        for callback in callbacks[:-1]:
            callback.on_train_end(trainer, module)
    seconds = time.perf_counter() - begin
    return Fitted(trainer, module, sparsify, measure, checkpoint, seconds, checkpoint.notes)


class Unprofiled(PassThroughProfiler):
    """No profiling, and no new context for each of the fifty places that ask in a step."""

    _NOTHING = nullcontext()

    def profile(self, action_name: str) -> Any:
        """Nothing to enter."""
        return self._NOTHING


def build_trainer(cfg: DictConfig, callbacks: list[Callback]) -> Trainer:
    """The trainer of a config: nothing of Lightning's own logging, bars or checkpoints."""
    config = cfg.trainer
    return Trainer(
        accelerator="gpu" if config.accelerator == "cuda" else config.accelerator,
        devices=config.devices,
        strategy="ddp" if config.devices > 1 else "auto",
        precision=PRECISIONS[config.precision],  # type: ignore[arg-type]  # a Literal there
        max_epochs=cfg.epochs,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.clip,
        callbacks=callbacks,
        plugins=[WholeFiles(), *([LightningEnvironment()] if OURS in os.environ else [])],
        profiler=Unprofiled(),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def train_loader(cfg: DictConfig, sets: DataSets, trainer: Trainer) -> TrainLoader:
    """This rank's training batches."""
    return TrainLoader(
        sets.train,
        cfg.batch_size // cfg.trainer.accumulate,
        cfg.seed,
        rank=trainer.global_rank,
        world_size=trainer.world_size,
        multiple=cfg.trainer.accumulate,
    )


def eval_loader(cfg: DictConfig, images: Any, trainer: Trainer) -> EvalLoader | None:
    """This rank's share of an evaluation set, in batches that need no gradients."""
    if images is None:
        return None
    batch = max(2 * cfg.batch_size, 256)
    return EvalLoader(images, batch, rank=trainer.global_rank, world_size=trainer.world_size)


def _differences(checkpoint: Path | None, device: str) -> list[str]:
    """What differs from where the checkpoint was written, so that the rest can't be bitwise."""
    if checkpoint is None:
        return []
    kept = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["sparsebench"]
    now = {
        "torch": str(torch.__version__),
        "device": device,
        "threads": torch.get_num_threads(),
    }
    found = [
        f"not bitwise: {what} was {kept[what]}, is {value}, on resuming"
        for what, value in now.items()
        if kept[what] != value
    ]
    return [*kept["notes"], *found]


def quiet_lightning() -> None:
    """Have Lightning say nothing that is not an error."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
