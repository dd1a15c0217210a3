"""Worker processes of one sweep each keep to their own cores, so that none is moved about."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

#: Folder of the slots, inside that of the workers.
FOLDER = "cores"


@dataclass
class _Seat:
    """Where this process sits: the sweep's folder, the lock that says so, and its cores before."""

    workers: Path
    lock: int
    before: set[int]


_seat: _Seat | None = None


def available() -> list[int]:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def divide(workers: Path, at_once: int) -> None:
    """Write down which cores each of so many processes may use; nothing if they are too few.

    Args:
        workers: folder of the sweep's workers.
        at_once: processes that run at the same time.
    """
    cores = available()
    each = len(cores) // at_once
    if each == 0 or at_once == 1:
        return
    (workers / FOLDER).mkdir()
    for number in range(at_once):
        mine = cores[number * each : (number + 1) * each]
        (workers / FOLDER / str(number)).write_text(" ".join(map(str, mine)))


def settle(workers: Path, threads: int | None) -> None:
    """Keep this process, until it ends, to cores that no other worker of its sweep has.

    A slot is taken by locking its file, which the system undoes when the process dies. Where
    there is none, or it has fewer cores than the run has threads, the process goes anywhere.

    Args:
        workers: folder of the sweep's workers.
        threads: of the run.
    """
    global _seat
    if not hasattr(os, "sched_setaffinity"):
        return
    if _seat is not None and _seat.workers != workers:  # of a sweep before this one
        os.sched_setaffinity(0, _seat.before)
        os.close(_seat.lock)
        _seat = None
    if _seat is None:
        _seat = _take(workers, threads)


def _take(workers: Path, threads: int | None) -> _Seat | None:
    import fcntl

    for path in sorted((workers / FOLDER).glob("*")):
        cores = {int(word) for word in path.read_text().split()}
        if threads and threads > len(cores):
            return None
        lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            seat = _Seat(workers, lock, os.sched_getaffinity(0))
            os.sched_setaffinity(0, cores)
            return seat
        os.close(lock)
    return None
