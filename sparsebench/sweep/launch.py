"""Start runs through a Hydra launcher, so that the death of one does not end the others."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.plugins.launcher import Launcher

from sparsebench.claim import living_owner, owner_of
from sparsebench.errors import Interrupted, UserError
from sparsebench.result import NAME, read_result
from sparsebench.signals import handling
from sparsebench.sweep.cells import Run
from sparsebench.sweep.job import Report

#: Seconds that runs in other processes have to write their checkpoints after Ctrl-C.
PATIENCE = 10.0
#: Seconds between two looks at runs that others are doing.
PERIOD = 1.0


@dataclass
class Launch:
    """Runs to be done, and how each ended.

    Attributes:
        launcher: Hydra's launcher.
        workers: folder where the processes that run cells leave their ids.
        extra: overrides of every run that only say how it is run.
        reports: by identity, of the runs that have ended.
        stamps: by identity, when a result from before was written.
        elsewhere: by identity, runs that were found in the hands of another process.
    """

    launcher: Launcher
    workers: Path
    extra: Sequence[str] = ()
    reports: dict[str, Report] = field(default_factory=dict)
    stamps: dict[str, int | None] = field(default_factory=dict)
    elsewhere: dict[str, Run] = field(default_factory=dict)

    def all(self, runs: Sequence[Run]) -> None:
        """Do all runs; where a process dies, find the run that kills it, and do the others.

        What other sweeps are doing comes last: it is waited for, and done here if they die.

        Raises:
            Interrupted: by a signal.
        """
        self.stamps = {run.identity: stamp(run) for run in runs}
        with handling(_passing_on(self, runs)):
            self._attempt(runs)
            while self.elsewhere:
                self._look_elsewhere()

    def _look_elsewhere(self) -> None:
        """Note what others have done, and do what they have left."""
        left = [run for run in self.elsewhere.values() if not living_owner(run.folder)]
        for run in list(self.elsewhere.values()):
            if self.ended(run) and (result := read_result(run.folder)):
                said = Report(result["status"], result.get("error") or "")
                self.reports[run.identity] = said
                del self.elsewhere[run.identity]
        left = [run for run in left if self.elsewhere.pop(run.identity, None)]
        if left:
            self._attempt(left)
        elif self.elsewhere:
            time.sleep(PERIOD)

    def ended(self, run: Run) -> bool:
        """Whether a run has ended in this sweep."""
        now = stamp(run)
        written = now is not None and now != self.stamps.get(run.identity)
        return written or run.identity in self.reports

    def owner(self, run: Run) -> int | None:
        """Process of this sweep that has, or had when it died, claimed a run."""
        owner = owner_of(run.folder)
        if owner is None or owner.host != socket.gethostname():
            return None
        return owner.pid if (self.workers / str(owner.pid)).exists() else None

    def _attempt(self, runs: Sequence[Run], alone: bool = False) -> None:
        if not runs:
            return
        try:
            jobs = [[*run.overrides, *self.extra] for run in runs]
            returns = self.launcher.launch(jobs, initial_job_idx=0)
        except UserError:
            raise
        except Exception as error:  # a process died, or the launcher itself failed
            if not any(self.workers.glob("[0-9]*")):  # no process has begun
                raise UserError(f"hydra/launcher: {_short(error)}") from error
            if alone:
                self.reports[runs[0].identity] = Report("killed", _death(error))
            else:
                self._after_death([run for run in runs if not self.ended(run)])
            return
        for run, back in zip(runs, returns, strict=True):
            report = _report(back)
            if report.status == "elsewhere":
                self.elsewhere[run.identity] = run
            else:
                self.reports[run.identity] = report

    def _after_death(self, pending: Sequence[Run]) -> None:
        """Those that were running are suspects, and are tried again one at a time."""
        suspects = [run for run in pending if self.owner(run)] or pending
        names = {run.identity for run in suspects}
        self._attempt([run for run in pending if run.identity not in names])
        for run in suspects:
            if not self.ended(run):
                self._attempt([run], alone=True)


def stamp(run: Run) -> int | None:
    """When the run's result was written, in nanoseconds."""
    try:
        return (run.folder / NAME).stat().st_mtime_ns
    except OSError:
        return None


def _report(back: Any) -> Report:
    value = back._return_value  # the property prints and raises what is reported here
    return value if isinstance(value, Report) else Report("failed", _short(value))


def _death(error: Exception) -> str:
    """What a launcher tells about a process that died."""
    if by := re.search(r"(SIG[A-Z]+)\(-\d+\)", str(error)):
        memory = "; too little memory is the usual cause" if by[1] == "SIGKILL" else ""
        return f"its process ended by {by[1]}{memory}"
    return f"its process died ({_short(error)})"


def _short(error: object) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[0].strip()}"[:200]


def _passing_on(launch: Launch, runs: Sequence[Run]) -> Callable[[int, FrameType | None], None]:
    """Handler of signals that lets the runs in other processes write their checkpoints first."""
    stopping = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal stopping
        mine, again, stopping = os.getpid(), stopping, True
        busy = {run.identity: pid for run in runs if (pid := launch.owner(run)) and pid != mine}
        if not busy or again:
            raise Interrupted(signum)
        said = "stopping as soon as checkpoints are written (once more: at once)"
        print(f"sparsebench: {said}", file=sys.stderr)
        for pid in set(busy.values()):
            _send(pid, signal.SIGTERM)
        until = time.monotonic() + PATIENCE
        held = [run for run in runs if run.identity in busy]
        while time.monotonic() < until and any(launch.owner(run) for run in held):
            time.sleep(0.05)
        raise Interrupted(signum)

    return stop


def _send(pid: int, signum: int) -> None:
    try:
        os.kill(pid, signum)
    except OSError:
        return
