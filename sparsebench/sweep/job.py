"""What a launcher runs for each cell: one run, whose end is reported and never raised."""

from __future__ import annotations

import os
import signal
import traceback
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from sparsebench.errors import Interrupted, UserError


@dataclass(frozen=True)
class Report:
    """How a run ended: ``finished``, ``diverged``, ``failed``, ``refused`` or ``interrupted``."""

    status: str
    error: str = ""


@dataclass(frozen=True)
class Job:
    """The task function of a sweep; travels to other processes.

    Attributes:
        parent: process id of the sweep.
        workers: folder where each process that runs cells leaves its id.
    """

    parent: int
    workers: Path

    def __call__(self, cfg: DictConfig) -> Report:
        """Do the run.

        Raises:
            Interrupted: a signal came while the run was in the sweep's own process.
        """
        elsewhere = os.getpid() != self.parent
        (self.workers / str(os.getpid())).touch()
        if elsewhere:  # the terminal's Ctrl-C is for the sweep, which passes it on to its runs
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            return _report(cfg)
        except Interrupted as error:
            if not elsewhere:
                raise
            return Report("interrupted", str(error))


def _report(cfg: DictConfig) -> Report:
    from sparsebench.run import run

    try:
        result = run(cfg)
    except UserError as error:
        return Report("refused", str(error))
    except SystemExit as error:  # of someone's own model: it must not end the other runs
        return Report("failed", f"it called sys.exit({error.code})")
    except Exception as error:
        return Report("failed", f"{type(error).__name__}: {error}{_place(error)}")
    return Report(result["status"], result.get("error") or "")


def _place(error: Exception) -> str:
    """Where it was raised, since nothing of it is written."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
