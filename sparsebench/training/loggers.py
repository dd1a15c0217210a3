"""Views of a run's metrics elsewhere: Weights & Biases and TensorBoard.

The run's own files are the truth; a logger that fails says so once and is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf

from sparsebench.dashboard.client import View, first_line, history
from sparsebench.errors import Diverged, Interrupted
from sparsebench.training.measure import Measure


class Sink(Protocol):
    """Where rows go."""

    def rows(self, rows: list[dict[str, float]]) -> None:
        """Figures of epochs."""

    def close(self, summary: dict[str, Any], failed: bool) -> None:
        """The end of the run."""

    def leave(self) -> None:
        """The run was stopped and will go on; what it stops for can't wait."""


class Wandb:
    """A W&B run under the run's identity; offline without an account or a server."""

    def __init__(self, cfg: DictConfig, folder: Path, before: list[dict[str, float]]) -> None:
        """Open the run, and send what a resumed one has from before: W&B may lack it."""
        values = OmegaConf.to_container(cfg, resolve=True)
        assert isinstance(values, dict)
        self._view = View({str(k): v for k, v in values.items()}, folder, cfg.logger.mode)
        self._view.log(before)
        if self._view.offline:
            why = f" ({self._view.why})" if self._view.why else ""
            _say(f"W&B is offline{why}; '{self._view.upload}' uploads")

    def rows(self, rows: list[dict[str, float]]) -> None:
        """Log epochs."""
        self._view.log(rows)

    def close(self, summary: dict[str, Any], failed: bool) -> None:
        """The summary is exactly the metrics of result.json."""
        self._view.close(summary, failed)

    def leave(self) -> None:
        """W&B ends it when the process does: after the requeueing, not before."""


class TensorBoard:
    """Event files in the run's folder."""

    def __init__(self, cfg: DictConfig, folder: Path, before: list[dict[str, float]]) -> None:
        """Open the writer; what a resumed run has from before is in its files."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def rows(self, rows: list[dict[str, float]]) -> None:
        """Log epochs."""
        for row in rows:
            for name, value in row.items():
                self._writer.add_scalar(name, value, int(row["step"]))

    def close(self, summary: dict[str, Any], failed: bool) -> None:
        """Flush and close."""
        self._writer.close()

    def leave(self) -> None:
        """Flush and close."""
        self._writer.close()


Kind = Callable[[DictConfig, Path, list[dict[str, float]]], Sink]
SINKS: dict[str, tuple[Kind, ...]] = {
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
        before = self._new_rows()
        if not trainer.is_global_zero:
            return
        for kind in SINKS[self.cfg.logger.name]:
            self._try(f"opening {kind.__name__}", partial(self._open, kind, before))

    def _open(self, kind: Kind, before: list[dict[str, float]]) -> None:
        self._sinks.append(kind(self.cfg, self.folder, before))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send the new rows."""
        rows = self._new_rows()
        for sink in list(self._sinks):
            self._try("logging", partial(sink.rows, rows), sink)

    def _new_rows(self) -> list[dict[str, float]]:
        begin, self._sent = self._sent, len(self.measure.rows)
        return history(self.measure.rows[begin:], self.measure.densities[begin:])

    def close(self, summary: dict[str, Any], failed: bool = False) -> None:
        """Send the summary and close all."""
        for sink in list(self._sinks):
            self._try("closing", partial(sink.close, summary, failed), sink)
        self._sinks.clear()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Close as failed; a run that was only stopped is left as it is."""
        if isinstance(exception, Interrupted | KeyboardInterrupt):
            for sink in self._sinks:
                self._try("closing", sink.leave)
            self._sinks.clear()
            return
        last = {"diverged/step": exception.step} if isinstance(exception, Diverged) else {}
        self.close(last, failed=True)

    def _try(self, what: str, action: Callable[[], None], sink: Sink | None = None) -> None:
        try:
            action()
        except Exception as error:  # a logger must never cost a run
            text = f"{what}: {type(error).__name__}: {first_line(error)}"
            _say(f"logger left out, {text}")
            self.notes.append(f"logger left out, {text}")
            if sink in self._sinks:
                self._sinks.remove(sink)


def _say(text: str) -> None:
    print(f"sparsebench: {text}", file=sys.stderr)
