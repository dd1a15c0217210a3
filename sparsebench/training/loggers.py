"""Views of a run's metrics elsewhere: Weights & Biases and TensorBoard.

The run's own files are the truth; a logger that fails says so once and is left out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf

from sparsebench.training.measure import Measure


class Sink(Protocol):
    """Where rows go."""

    def row(self, step: int, values: dict[str, float]) -> None:
        """One epoch's figures."""

    def close(self, summary: dict[str, Any], failed: bool) -> None:
        """The end of the run."""


#: W&B's own patience: a server that does not answer must not hold a run up for long.
WANDB_DEFAULTS = {
    "WANDB_SILENT": "true",
    "WANDB_CONSOLE": "off",
    "WANDB_INIT_TIMEOUT": "20",
    "WANDB_FINISH_TIMEOUT": "60",
}


class Wandb:
    """A W&B run under the run's identity; offline without an account or a server."""

    def __init__(self, cfg: DictConfig, folder: Path) -> None:
        """Open the run."""
        for name, value in WANDB_DEFAULTS.items():
            os.environ.setdefault(name, value)
        import wandb

        mode, why = cfg.logger.mode, ""
        if mode == "auto":
            mode = "online" if _has_account() else "offline"
        try:
            self._run = _open(cfg, folder, mode)
        except Exception as error:  # wandb raises many kinds, and tells us by text only
            if mode != "online":
                raise
            mode, why = "offline", f" ({_first_line(error)})"
            wandb.teardown()  # it goes on believing that a run of this id is open
            self._run = _open(cfg, folder, mode)
        self._run.define_metric("*", step_metric="step")
        if mode == "offline":
            place = Path(self._run.dir).parent  # files of an offline run are beside its record
            print(
                f"sparsebench: W&B is offline{why}; 'wandb sync {place}' uploads", file=sys.stderr
            )

    def row(self, step: int, values: dict[str, float]) -> None:
        """Log one epoch."""
        self._run.log(values)

    def close(self, summary: dict[str, Any], failed: bool) -> None:
        """The summary is exactly the metrics of result.json."""
        self._run.summary.update(summary)
        self._run.finish(exit_code=int(failed))


def _open(cfg: DictConfig, folder: Path, mode: Any) -> Any:
    import wandb

    values = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(values, dict)
    name = folder.name
    return wandb.init(
        project=cfg.logger.project,
        entity=cfg.logger.entity,
        id=name,
        name=f"{cfg.method.name} {cfg.sparsity:g} {cfg.model.name} {cfg.data.name} #{cfg.seed}",
        group=cfg.logger.group or name.rsplit("-", 2)[0],
        job_type=cfg.task.name,
        tags=[cfg.method.name, cfg.data.name, cfg.model.name, *cfg.logger.tags],
        config={str(k): v for k, v in values.items()},
        dir=str(folder),
        mode=mode,
        resume="allow",
        reinit="create_new",  # a sweep opens many runs in one process
    )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _has_account() -> bool:
    import netrc

    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return "api.wandb.ai" in netrc.netrc().hosts
    except (OSError, netrc.NetrcParseError):
        return False


class TensorBoard:
    """Event files in the run's folder."""

    def __init__(self, cfg: DictConfig, folder: Path) -> None:
        """Open the writer."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def row(self, step: int, values: dict[str, float]) -> None:
        """Log one epoch."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, summary: dict[str, Any], failed: bool) -> None:
        """Flush and close."""
        self._writer.close()


SINKS: dict[str, tuple[Callable[[DictConfig, Path], Sink], ...]] = {
    "csv": (),
    "wandb": (Wandb,),
    "tensorboard": (TensorBoard,),
    "all": (Wandb, TensorBoard),
}


class Mirror(Callback):
    """Sends each epoch's row to the sinks of the config; no sink can stop the run."""

    def __init__(self, cfg: DictConfig, folder: Path, measure: Measure) -> None:
        """Name the sinks; they open when training starts."""
        self.cfg = cfg
        self.folder = folder
        self.measure = measure
        self.notes: list[str] = []
        self.wanted = bool(SINKS[cfg.logger.name])
        self._sinks: list[Sink] = []
        self._sent = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open; a resumed run sends only what is new."""
        self._sent = len(self.measure.rows)
        if not trainer.is_global_zero:
            return
        for kind in SINKS[self.cfg.logger.name]:
            self._try(f"opening {kind.__name__}", partial(self._open, kind))

    def _open(self, kind: Callable[[DictConfig, Path], Sink]) -> None:
        self._sinks.append(kind(self.cfg, self.folder))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send the new rows."""
        for row in self.measure.rows[self._sent :]:
            values = {name: float(value) for name, value in row.items()}
            for sink in list(self._sinks):
                self._try("logging", partial(sink.row, int(values["step"]), values), sink)
        self._sent = len(self.measure.rows)

    def close(self, summary: dict[str, Any], failed: bool = False) -> None:
        """Send the summary and close all."""
        for sink in list(self._sinks):
            self._try("closing", partial(sink.close, summary, failed), sink)
        self._sinks.clear()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Close as failed."""
        self.close({}, failed=True)

    def _try(self, what: str, action: Callable[[], None], sink: Sink | None = None) -> None:
        try:
            action()
        except Exception as error:  # a logger must never cost a run
            text = f"{what}: {type(error).__name__}: {_first_line(error)}"
            print(f"sparsebench: logger left out, {text}", file=sys.stderr)
            self.notes.append(f"logger left out, {text}")
            if sink in self._sinks:
                self._sinks.remove(sink)
