"""What is measured of a run, at each epoch and at its end."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from sparsebench.files import write_text
from sparsebench.sparsity import topology
from sparsebench.sparsity.flops import LayerFlops
from sparsebench.sparsity.masks import unpack
from sparsebench.sparsity.session import Session
from sparsebench.sparsity.topology import ItopTracker
from sparsebench.sparsity.training_flops import TrainingFlops
from sparsebench.training.learner import Learner
from sparsebench.training.sparsify import Sparsify

#: Seconds between two writes of the tables; epochs may be shorter than a write.
WRITE_EVERY = 1.0


class Measure(Callback):
    """Counts FLOPs at each step, and at each epoch writes a row of ``metrics.csv``.

    Everything it keeps is in the checkpoint, so the files of a resumed run are those of one
    that was never interrupted; seconds, which can't be, go into ``seconds.csv``.
    """

    def __init__(
        self, folder: Path, sparsify: Sparsify, flops: LayerFlops, dense_forward: float, batch: int
    ) -> None:
        """Say what to measure.

        Args:
            folder: the run's folder.
            sparsify: holds the masks.
            flops: dense FLOPs of the model being trained.
            dense_forward: forward FLOPs of the dense model that results are relative to.
            batch: samples of one optimizer step over all ranks.
        """
        self.folder = folder
        self.sparsify = sparsify
        self.flops = flops
        self.batch = batch
        self.training = TrainingFlops(dense_forward)
        self.rows: list[dict[str, Any]] = []
        self.densities: list[dict[str, Any]] = []
        self.seconds: list[dict[str, Any]] = []
        self.itop: ItopTracker | None = None
        self.initial: dict[str, Tensor] = {}
        self._initial_packed: dict[str, Tensor] | None = None
        self._itop_state: dict[str, Any] | None = None
        self._forward = 0.0
        self._version = -1
        self._step = 0
        self._gradient_norm = 0.0
        self._rate = 0.0
        self._began = 0.0
        self._elapsed = 0.0
        self._validated = 0.0
        self._written = 0.0
        self._topology: tuple[int, dict[str, float | int]] | None = None

    # --- each step ---------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the first topology, or a checkpoint's."""
        assert self.sparsify.session is not None
        masks = self.sparsify.session.masks
        self.itop = topology.ItopTracker(dict(masks.items()))
        self.initial = masks.packed()
        if self._initial_packed is not None:
            self.initial = self._initial_packed
            self.itop.load_state_dict(self._itop_state or {})
        self._step = trainer.global_step
        self._began = time.perf_counter() - self._elapsed  # in the middle of an epoch, if resumed
        self._look()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Norm of the masked gradient and learning rate of the last step of an epoch."""
        if trainer.is_last_batch:
            self._rate = float(optimizer.param_groups[0]["lr"])
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            self._gradient_norm = float(torch.nn.utils.get_total_norm(gradients))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the FLOPs of an optimizer step, at the masks it was taken with."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        session = self.sparsify.session
        assert session is not None
        parts = {n: self.flops.forward(d) for n, d in session.gradient_densities.items()}
        if session.dense_gradient:  # of the network that is trained, which may be a larger one
            parts.setdefault("weight_gradient", self.flops.total)
        assert isinstance(pl_module, Learner)
        samples = self.batch + pl_module.extra_samples
        self.training.add(self._forward, samples, dense_gradient=session.dense_gradient, **parts)
        passes = 3 * session.state.looked_at + pl_module.extra_passes
        self.training.add_beside(passes * self._forward)
        session.state.looked_at = pl_module.extra_passes = 0
        if session.masks.version != self._version:
            self._look()

    def _look(self) -> None:
        """Follow the masks after a change."""
        assert self.sparsify.session is not None
        assert self.itop is not None
        masks = self.sparsify.session.masks
        self._version = masks.version
        self._forward = self.flops.forward(masks.densities)
        self.itop.update(dict(masks.items()))

    # --- each epoch --------------------------------------------------------------------------

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the epoch."""
        self._began = time.perf_counter()
        self._validated = 0.0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the validation."""
        self._validated -= time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of the validation."""
        self._validated += time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the epoch's row and write the files."""
        assert isinstance(pl_module, Learner)
        assert self.sparsify.session is not None
        session = self.sparsify.session
        row: dict[str, Any] = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "lr": self._rate,
            "train/loss": pl_module.take_train_loss(),
            **{f"validation/{k}": v for k, v in pl_module.last_validation.items()},
            **pl_module.row(),
            "gradient_norm": self._gradient_norm,
            **self.topology(),
            "flops/training": self.training.total,
            "flops/training_relative": self.training.relative,
        }
        self.rows.append(row)
        self.densities.append({"epoch": row["epoch"], **session.masks.densities})
        self.seconds.append(
            {
                "epoch": row["epoch"],
                "training": time.perf_counter() - self._began - self._validated,
                "validation": self._validated,
                "mask_updates": session.update_seconds,
            }
        )
        session.update_seconds = 0.0
        last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if trainer.is_global_zero and (last or time.monotonic() - self._written > WRITE_EVERY):
            self.write()

    def topology(self) -> dict[str, float | int]:
        """Counts and measures of the masks as they are; done anew only after they changed."""
        assert self.sparsify.session is not None
        assert self.itop is not None
        session = self.sparsify.session
        if self._topology and self._topology[0] == session.masks.version:
            return self._topology[1]
        found = self._measure_topology(session, self.itop)
        self._topology = (session.masks.version, found)
        return found

    def _measure_topology(self, session: Session, itop: ItopTracker) -> dict[str, float | int]:
        now = dict(session.masks.items())
        initial = {name: unpack(bits, now[name].shape) for name, bits in self.initial.items()}
        return {
            "nonzeros": sum(session.masks.nonzeros.values()),
            "sparsity": session.masks.sparsity,
            "itop_rate": itop.rate,
            "survived": topology.survived(initial, now),
            "distance": topology.distance(initial, now),
            "dead_units": sum(
                u.outputs for u in topology.dead_units(session.state.model, now).values()
            ),
            "flops/inference": self.flops.forward(session.masks.densities),
        }

    def write(self) -> None:
        """Write metrics, densities by layer and seconds, each file whole."""
        files = (
            ("metrics.csv", self.rows),
            ("density.csv", self.densities),
            ("seconds.csv", self.seconds),
        )
        for name, rows in files:
            write_text(self.folder / name, to_csv(rows))
        self._written = time.monotonic()

    # --- checkpoints -------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All rows and counters."""
        return {
            "training": self.training.state_dict(),
            "rows": list(self.rows),
            "densities": list(self.densities),
            "seconds": list(self.seconds),
            "seconds_elapsed": time.perf_counter() - self._began,
            "initial": dict(self.initial),
            "itop": self.itop.state_dict() if self.itop else {},
            "gradient_norm": self._gradient_norm,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take rows and counters back; topology waits for the masks."""
        self.training.load_state_dict(state_dict["training"])
        self.rows = list(state_dict["rows"])
        self.densities = list(state_dict["densities"])
        self.seconds = list(state_dict["seconds"])
        self._elapsed = state_dict["seconds_elapsed"]
        self._initial_packed = dict(state_dict["initial"])
        self._itop_state = state_dict["itop"]
        self._gradient_norm = state_dict["gradient_norm"]


def to_csv(rows: list[dict[str, Any]]) -> str:
    """Rows as CSV text; floats in the shortest form that reads back the same."""
    out = io.StringIO()
    if rows:
        writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return out.getvalue()
