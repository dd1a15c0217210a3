"""The signals that stop a run: Ctrl-C, SIGTERM, and SIGUSR1, by which SLURM announces the end."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from sparsebench.errors import Interrupted

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
#: Most often that SLURM starts one job again: a run of months in jobs of hours has an end too.
REQUEUES = 1000
#: How the sentence ends that tells of a requeue.
REQUEUED = "is requeued and goes on"


@contextmanager
def handling(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Have the stopping signals handled by ``handler`` inside, see :func:`take`."""
    before = take(handler)
    try:
        yield
    finally:
        give_back(before)


def take(handler: Callable[[int, FrameType | None], object]) -> dict[int, Any]:
    """Have the stopping signals handled by ``handler``; returns who did before.

    A signal that is ignored (under nohup, say) stays so. Python handles signals in its main
    thread only; in another one nothing happens here.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    heard = [n for n in STOPPING if signal.getsignal(n) not in (signal.SIG_IGN, None)]
    return {number: signal.signal(number, handler) for number in heard}


def give_back(before: dict[int, Any]) -> None:
    """Put the handlers back that :func:`take` gave."""
    for number, handler in before.items():
        signal.signal(number, handler)


def stop_at_once(signum: int, frame: FrameType | None) -> None:
    """Handler that leaves whatever is going on.

    Raises:
        Interrupted: always.
    """
    raise Interrupted(signum)


def slurm_job() -> str:
    """The SLURM job we are in, or nothing; in an array the bare number may stand for all of it."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def goes_on(signum: int, state: str, restarts: int, limit: int = REQUEUES) -> bool:
    """Whether SLURM is to start a job again that a signal stopped.

    SIGUSR1 comes before the time limit. SIGTERM comes when the job is preempted and has some
    time left, and then the job still counts as running; or when SLURM is ending it already,
    since it was cancelled, or to requeue it on its own.

    Args:
        signum: the signal.
        state: the job's state by SLURM's name; empty if SLURM does not say.
        restarts: how often SLURM has started the job again so far.
        limit: how often it may.
    """
    if signum == signal.SIGINT or restarts >= limit:
        return False
    return state == "RUNNING" if signum == signal.SIGTERM else state in ("RUNNING", "")


def requeue(signum: int, limit: int = REQUEUES) -> str:
    """Have SLURM start this job again if :func:`goes_on` says so; returns what to tell the user.

    This is the only place that requeues: a checkpoint is written between two steps, which
    neither submitit's nor Lightning's handlers, running in the middle of one, can wait for.
    """
    job = slurm_job()
    restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    if not job or signum == signal.SIGINT:
        return "the same command goes on"
    if not goes_on(signum, _state(job), restarts, limit):
        return f"job {job} is not requeued; the same command goes on"
    try:
        _ask("scontrol", "requeue", job)
    except (OSError, subprocess.SubprocessError) as error:
        return f"job {job} could not be requeued ({error}); the same command goes on"
    return f"job {job} {REQUEUED}"


def _state(job: str) -> str:
    try:
        return _ask("squeue", "-h", "-t", "all", "-o", "%T", "-j", job).strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _ask(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout
