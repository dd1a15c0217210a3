"""What a launcher runs for each cell: one run, whose end is reported and never raised."""

from __future__ import annotations

import contextlib
import os
import signal
import traceback
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from sparsebench.claim import Claimed
from sparsebench.errors import Interrupted, UserError
from sparsebench.sweep.cores import settle


@dataclass(frozen=True)
class Report:
    """How a run ended: ``finished``, ``diverged``, ``failed``, ``refused`` or ``interrupted``.

    ``elsewhere`` is one that has not ended: another process is doing it.
    """

    status: str
    error: str = ""


@dataclass(frozen=True)
class Job:
    """The task function of a sweep; travels to other processes.

    Attributes:
        parent: process id of the sweep.
        workers: folder where each process that runs cells leaves its id; other nodes do not
            have it.
    """

    parent: int
    workers: Path

    def __call__(self, cfg: DictConfig) -> Report:
        """Do the run.

        Raises:
            Interrupted: a signal came while the run was in the sweep's own process.
        """
        apart = os.getpid() != self.parent or not self.workers.is_dir()
        with contextlib.suppress(OSError):
            (self.workers / str(os.getpid())).touch()
        if apart:  # the terminal's Ctrl-C is for the sweep, which passes it on to its runs
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            settle(self.workers, cfg.trainer.threads)
        try:
            return report_of(cfg)
        except Interrupted as error:
            if not apart:
                raise
            return Report("interrupted", str(error))


def report_of(cfg: DictConfig) -> Report:
    """Do a run; how it ended.

    Raises:
        Interrupted: a signal came.
    """
    from sparsebench.run import run

    try:
        result = run(cfg, wait=False)
    except Claimed as error:
        return Report("elsewhere", str(error))
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
