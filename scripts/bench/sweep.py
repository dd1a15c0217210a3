"""What a sweep costs beyond its training, and what a second worker gains.

    python scripts/bench/sweep.py [alone|workers|profile]    (PAIRS=1 for a quick look)

``alone``: twenty runs of about five seconds each in one process; the whole command, from its
start to its table, over the sum of the trainings. ``workers``: the same runs by two joblib
workers with a core each, over one process with two threads; the bound on the ratio of times is
one over that of runs an hour. ``profile``: where the time of ``alone`` goes between trainings.
"""

from __future__ import annotations

import contextlib
import cProfile
import json
import os
import pstats
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import Ratio, alternate, of, report, seconds

RUNS, SECONDS, PAIRS = 20, 5.0, int(os.environ.get("PAIRS", "3"))
WORDS = [
    "-m", "model=mlp", "data=digits", "method=rigl", "method.every=20it", "sparsity=0.9",
    "plots=false",
]  # fmt: skip


def fresh(runs: int, epochs: int, *words: str) -> tuple[float, float]:
    """A sweep of some seeds, as a command in a folder of its own.

    Returns:
        Seconds it took, and seconds its trainings took.
    """
    folder = Path(tempfile.mkdtemp())
    command = [sys.executable, "-m", "sparsebench", *WORDS, f"epochs={epochs}",
               f"seed=range(0,{runs})", f"runs={folder}/runs", *words]  # fmt: skip
    try:
        whole = seconds(
            lambda: subprocess.run(command, cwd=folder, check=True, capture_output=True)
        )
        results = [json.loads(p.read_text()) for p in folder.glob("runs/*/result.json")]
    finally:
        shutil.rmtree(folder)
    assert len(results) == runs
    return whole, sum(float(result["metrics"]["seconds/fit"]) for result in results)


def epochs_for(wanted: float) -> int:
    """Epochs that take about so many seconds here and now."""
    return max(1, round(wanted / (fresh(2, 50, "trainer.threads=1")[1] / 2 / 50)))


def alone() -> Ratio:
    """One process."""
    epochs, ratios = epochs_for(SECONDS), []
    for _ in range(PAIRS):
        whole, training = fresh(RUNS, epochs, "trainer.threads=1")
        ratios.append(whole / training)
    return of(f"sweep of {RUNS} runs of {SECONDS:g} s in one process / training", ratios, 1.15)


def workers() -> Ratio:
    """Two workers against two threads."""
    epochs = epochs_for(SECONDS)
    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "trainer.threads=1")
    return alternate(
        f"{RUNS} runs: two workers on 2 cores / one with 2 threads, time",
        lambda: fresh(RUNS, epochs, *joblib),
        lambda: fresh(RUNS, epochs, "trainer.threads=2"),
        target=1 / 1.5,
        pairs=PAIRS,
        warm_up=0,
    )


def profile() -> None:
    """What is called in a sweep of short runs."""
    from sparsebench.cli import main

    folder = tempfile.mkdtemp()
    words = [*WORDS, "epochs=4", f"seed=range(0,{RUNS})", f"runs={folder}", "trainer.threads=1"]
    profiler = cProfile.Profile(time.process_time)
    with contextlib.suppress(SystemExit):
        profiler.runcall(main, words)
    pstats.Stats(profiler).sort_stats("cumulative").print_stats(90)
    shutil.rmtree(folder)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "2"
    parts = {"alone": alone, "workers": workers}
    if sys.argv[1:] == ["profile"]:
        profile()
    else:
        report("sweep", [parts[name]() for name in sys.argv[1:] or parts])
