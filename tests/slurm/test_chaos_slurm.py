"""The sweep and its jobs killed at random; let through at last, the same table."""

import os
import random
import signal
import time
from pathlib import Path

from slurm.cluster import STEPS, assert_finished, steps, sweep

KILLS = 5


def jobs_of(place):
    """Processes of runs on this node: those of the sweep's own folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"sparsebench.sweep.slurm_cell" in words and str(place).encode() in words[-2]:
                found.append((int(entry.name), words[0]))
    return [pid for pid, program in found if not program.endswith(b"srun")]


def test_killed_at_random_ends_with_the_same_table(place, serial):
    dice = random.Random(4)
    for _ in range(KILLS):
        running = sweep(place, PACE="0.05")
        time.sleep(dice.uniform(2, 14))
        running.kill()
        for pid in jobs_of(place):
            if dice.random() < 0.4:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
    assert_finished(place, sweep(place), serial)
    assert steps(place) >= STEPS
