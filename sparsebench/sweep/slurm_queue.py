"""What SLURM says about jobs, and which jobs the sweeps of a folder have submitted."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import os
import subprocess
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from sparsebench.files import read_json, write_json

NAME = "jobs.json"
#: States of jobs that won't run any more; every other one may still have a result.
ENDED = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
     "PREEMPTED", "REVOKED", "TIMEOUT")
)  # fmt: skip
#: Seconds without a sign after which a sweep counts as dead.
SILENCE = 60.0


def states() -> dict[str, str] | None:
    """State of each of the user's jobs, ``12`` or ``12_3`` in an array; None if SLURM is mute.

    ``squeue`` and not ``sacct``, which needs a data base that not every cluster has. It forgets
    a job minutes after its end, so a job that is missing has ended.
    """
    words = ["squeue", "-h", "-r", "-t", "all", "-u", getpass.getuser(), "-o", "%i %T"]
    try:
        done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(line.split() for line in done.stdout.splitlines() if len(line.split()) == 2)


def alive(job: str, states: dict[str, str]) -> bool:
    """Whether a job is waiting or running."""
    return job in states and states[job] not in ENDED


def cancel(jobs: Collection[str]) -> None:
    """Take jobs off the queue; running ones get SIGTERM, and some seconds to checkpoint."""
    if jobs:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(["scancel", *sorted(jobs)], capture_output=True, timeout=60)


def largest_array() -> int:
    """Most tasks that an array may have."""
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        words = ["scontrol", "show", "config"]
        told = subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout
        for line in told.splitlines():
            if line.startswith("MaxArraySize"):
                return max(int(line.partition("=")[2]), 1)
    return 1000


def key(overrides: Sequence[str]) -> str:
    """Name of a cell in the records: the same overrides are the same run."""
    return hashlib.sha256("\n".join(sorted(overrides)).encode()).hexdigest()[:16]


class Record:
    """The jobs of one sweep, in a folder of its own beside submitit's files and the logs.

    Its file is touched as long as the sweep lives: another one waits for the jobs in it
    instead of submitting them again, and takes them over if the sweep is dead.
    """

    def __init__(self, folder: Path) -> None:
        """Begin an empty record; nothing is written yet.

        Args:
            folder: where the folders of all sweeps are.
        """
        stamp = time.strftime("%Y%m%d-%H%M%S")
        self.folder = folder.absolute() / f"{stamp}-{os.uname().nodename}-{uuid.uuid4().hex[:6]}"
        self.jobs: dict[str, tuple[str, str]] = {}

    def add(self, name: str, job: str, folder: Path) -> None:
        """A job that is this sweep's now, to be written by :meth:`save`."""
        self.jobs[name] = (job, str(folder))

    def save(self) -> None:
        """Write the record."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / NAME, self.jobs)

    def beat(self) -> None:
        """Show that the sweep lives."""
        with contextlib.suppress(OSError):
            os.utime(self.folder / NAME)

    def close(self) -> None:
        """The sweep has ended; the logs stay."""
        (self.folder / NAME).unlink(missing_ok=True)

    def others(self) -> Iterator[tuple[Path, dict[str, tuple[str, str]], bool]]:
        """The records of other sweeps: file, jobs, whether the sweep lives."""
        for path in sorted(self.folder.parent.glob(f"*/{NAME}")):
            jobs = read_json(path)
            if path.parent == self.folder or not isinstance(jobs, dict):
                continue
            with contextlib.suppress(OSError):
                yield path, jobs, time.time() - path.stat().st_mtime < SILENCE
