"""Checkpoints: whole files, the one before kept, readable without running code."""

from __future__ import annotations

import signal
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from sparsebench.config.schema import SCHEMA
from sparsebench.errors import Interrupted, UserError
from sparsebench.files import set_aside, write_atomically
from sparsebench.signals import give_back, take
from sparsebench.training.learner import Learner

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place, keeps the one before, then renames."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write atomically; at any moment ``last`` or ``previous`` is a whole file."""
        path = Path(path)
        fresh = path.with_name(f"fresh-{path.name}")
        write_atomically(fresh, lambda file: torch.save(checkpoint, file))
        if path.exists():
            path.replace(path.with_name(PREVIOUS))
        fresh.replace(path)


def find_checkpoint(folder: Path, identity: str, *, first: bool = True) -> Path | None:
    """The newest checkpoint of a run that is whole; damaged ones are set aside and named.

    Args:
        folder: the run's folder.
        identity: name of the run.
        first: whether this is the first rank; the others only look.

    Raises:
        UserError: the checkpoint is of another config or of code we do not trust.
    """
    for name in (LAST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        if fault := _fault(path):
            if first:
                set_aside(path, fault)
            continue
        _check_owner(path, identity)
        return path
    return None


def _fault(path: Path) -> str | None:
    """Why a checkpoint can't be used, or None."""
    try:
        if not zipfile.is_zipfile(path):
            return "is cut short or empty"
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except Exception as error:  # whatever the garbage leads zipfile to
        return f"is damaged ({error})"
    return f"is damaged in its part {bad}" if bad else None


def _check_owner(path: Path, identity: str) -> None:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the unpickler raises whatever the foreign content makes it
        raise UserError(
            f"{path}: holds more than tensors and numbers, so it is not ours and is not loaded "
            f"({str(error).splitlines()[0]}); move it away to start anew"
        ) from error
    ours = content.get("sparsebench") if isinstance(content, dict) else None
    ours = ours if isinstance(ours, dict) else {}
    for what, found, wanted in (
        ("schema", ours.get("schema"), SCHEMA),
        ("run", ours.get("identity"), identity),
    ):
        if found != wanted:
            raise UserError(
                f"{path}: is a checkpoint of {what} '{found}', not of '{wanted}'; move it away "
                "to start anew"
            )


class Checkpoint(Callback):
    """Writes checkpoints every so often, on a signal and at the end of training.

    Also keeps the state of torch's global generators, which Lightning does not.
    """

    def __init__(self, folder: Path, identity: str, every: float) -> None:
        """Say where and how often.

        Args:
            folder: the run's folder.
            identity: name of the run, kept in the file.
            every: seconds between checkpoints; 0 is after each optimizer step.
        """
        self.folder = folder
        self.identity = identity
        self.every = every
        self.seconds = 0.0
        self.notes: list[str] = []  # what keeps the rest of the run from being bitwise
        self._signal: int | None = None
        self._before: dict[int, Any] = {}  # who handled the signals
        self._saved = time.monotonic()
        self._loaded: dict[str, Any] | None = None
        self._step = 0

    # --- when --------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take back the generators' states and listen for signals."""
        if self._loaded:
            _set_generators(self._loaded, trainer.global_rank)
            self._loaded = None
        self._saved = time.monotonic()
        self._step = trainer.global_step
        self._before = take(self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None and number == signal.SIGINT:
            raise Interrupted(number)  # asked twice: stop at once, the last checkpoint stands
        self._signal = number

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Between two optimizer steps: save if it is time or a signal came."""
        if trainer.global_step == self._step or trainer.is_last_batch:
            return  # in the middle of an accumulation, or the epoch's end comes at once
        self._step = trainer.global_step
        self._save_if(trainer, pl_module, last=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The epoch is measured (this callback is the last): save if due, and at the end.

        Short epochs are not each worth a file: a kill costs ``every`` seconds at most.
        """
        last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        self._save_if(trainer, pl_module, last=last)

    def _save_if(self, trainer: Trainer, pl_module: LightningModule, *, last: bool) -> None:
        """Save where it is time; all ranks decide alike.

        Raises:
            Interrupted: a signal came.
        """
        stop = self._stopping(trainer)
        due = _anywhere(trainer, last or time.monotonic() - self._saved >= self.every)
        if stop or due:
            assert isinstance(pl_module, Learner)
            pl_module.check_divergence()  # what can't get well again is not worth keeping
            self._save(trainer)
        if stop:
            raise Interrupted(self._signal or signal.SIGTERM, trainer.global_step)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """A long validation need not be waited for: the last checkpoint stands."""
        if self._signal is not None and trainer.world_size == 1:
            raise Interrupted(self._signal, trainer.global_step)

    def _stopping(self, trainer: Trainer) -> bool:
        return _anywhere(trainer, self._signal is not None)

    def _save(self, trainer: Trainer) -> None:
        begin = time.monotonic()
        trainer.save_checkpoint(self.folder / LAST)
        self._saved = time.monotonic()
        self.seconds += self._saved - begin

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        self._release()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the signals back."""
        self._release()

    def _release(self) -> None:
        give_back(self._before)
        self._before = {}

    # --- what --------------------------------------------------------------------------------

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Name the owner, and all ranks' generators."""
        device = trainer.strategy.root_device.type
        states = _generators(device)
        if trainer.world_size > 1:
            states = {
                key: trainer.strategy.all_gather(value.to(trainer.strategy.root_device)).cpu()
                for key, value in states.items()
            }
        else:
            states = {key: value.unsqueeze(0) for key, value in states.items()}
        checkpoint["sparsebench"] = {
            "schema": SCHEMA,
            "identity": self.identity,
            "device": device,
            "threads": torch.get_num_threads(),
            "notes": self.notes,
            "torch": str(torch.__version__),
            "generators": states,
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Hold the generators' states until training starts."""
        self._loaded = checkpoint["sparsebench"]


def _anywhere(trainer: Trainer, here: bool) -> bool:
    """Whether something is so on any rank."""
    if trainer.world_size == 1:
        return here
    return bool(trainer.strategy.reduce_boolean_decision(here, all=False))


def _generators(device: str) -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device == "cuda":
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_generators(kept: Mapping[str, Any], rank: int) -> None:
    # clone: torch reads a state from the beginning of its storage, whichever row it is given
    states = {name: every[rank].cpu().clone() for name, every in kept["generators"].items()}
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
