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


def requeue(signum: int) -> str:
    """Have SLURM start this job again if it was its SIGUSR1; returns what to tell the user."""
    job = os.environ.get("SLURM_JOB_ID")
    if signum != signal.SIGUSR1 or not job:
        return "the same command goes on"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        return f"job {job} could not be requeued ({error}); the same command goes on"
    return f"job {job} is requeued and goes on"
