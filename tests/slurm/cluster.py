"""Sweeps over SLURM whose runs come to grief at a chosen step, once.

The network is a user's. A file ``faults/STEP-WHAT`` has the first process that gets to this
training step do it to itself; who removes the file does it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

NET = """
import os, signal, subprocess, time
from pathlib import Path

import torch
from torch import nn

step = 0


def slurm(*words):
    job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    subprocess.run([*words, job])  # may get the signal too, as all processes of the step
    time.sleep(1)


FAULTS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "limit": lambda: slurm("scancel", "--signal=USR1"),
    "preempt": lambda: slurm("scancel", "--signal=TERM"),
    "cancel": lambda: slurm("scancel"),
    "stepd": lambda: os.kill(os.getppid(), signal.SIGKILL),
}


def trained():
    global step
    step += 1
    with open("steps", "ab") as file:
        file.write(b".")
    for path in Path("faults").glob(f"{step}-*"):
        try:
            path.unlink()
        except FileNotFoundError:
            continue
        FAULTS[path.name.partition("-")[2]]()
    time.sleep(float(os.environ.get("PACE", "0")))


class Net(nn.Module):
    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(64, 16), nn.Linear(16, num_classes)

    def forward(self, x):
        if self.training and len(x) > 2:  # else the model is only being looked at
            trained()
        x = torch.relu(self.fc1(x.flatten(1)))
        return self.fc2(nn.functional.dropout(x, 0.2, self.training))
"""
GRID = [
    "model=custom", "model._target_=net.Net", "allow=[net]", "data=digits", "method=set,rigl",
    "method.every=4it", "sparsity=0.8", "seed=0,1", "epochs=3", "batch_size=128",
    "trainer.threads=1", "trainer.accelerator=cpu", "plots=false",
]  # fmt: skip
STEPS = 4 * 30  # of four cells: 3 epochs of 10, of 1,293 images in batches of 128
NAME = "sparsebench-test"
SLURM = [
    f"hydra.launcher.name={NAME}",
    "hydra/launcher=slurm",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.poll_s=0.5",
]
LIMIT = 240


def start():
    """Use the SLURM that answers; else start one, or say in one line why not."""
    done = subprocess.run([Path(__file__).parent / "start.sh"], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        pytest.exit(done.stderr.strip(), returncode=2)


def home(folder):
    (folder / "faults").mkdir(parents=True, exist_ok=True)
    (folder / "net.py").write_text(NET)
    return folder


class Sweep:
    """The command in a process of its own."""

    def __init__(self, place, words, env):
        keys = [word.partition("=")[0] for word in words]
        grid = [word for word in GRID if word.partition("=")[0] not in keys]
        number = len(list(place.glob("stderr*")))
        self.err = place / f"stderr{number}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sparsebench", "-m", *grid, *words],
            cwd=place,
            env={**os.environ, "OMP_NUM_THREADS": "1", **env},
            stdout=subprocess.DEVNULL,
            stderr=self.err.open("w"),
        )

    def wait(self):
        return self.process.wait(LIMIT)

    def send(self, signum):
        self.process.send_signal(signum)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def said(self):
        return self.err.read_text()


def sweep(place, *words, **env):
    """All four cells over SLURM, unless further words say otherwise."""
    return Sweep(place, [*SLURM, *words], env)


def until(condition, seconds=LIMIT):
    """Wait for something; what it is."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise TimeoutError


def results(place):
    """Of each run all that is exact; the digest of the weights is one of the metrics."""
    found = {}
    for path in sorted((place / "runs").glob("*/result.json")):
        result = json.loads(path.read_text())
        exact = {
            k: v for k, v in result["metrics"].items() if not k.startswith(("seconds/", "memory/"))
        }
        assert exact["weights_sha256"]
        found[path.parent.name] = (result["status"], exact)
    return found


def table_of(place):
    """Results of all runs, and the bytes of the table."""
    (csv,) = (place / "runs" / "tables").glob("*/table.csv")
    return results(place), csv.read_bytes()


def steps(place):
    """Training steps done so far, by all processes."""
    path = place / "steps"
    return path.stat().st_size if path.exists() else 0


def logs(place):
    return "".join(path.read_text() for path in sorted((place / "runs/slurm").glob("*/*.err")))


def fault(place, *names):
    for name in names:
        (place / "faults" / name).touch()


def queue():
    """Jobs that are waiting or running."""
    words = ["squeue", "-h", "-r", "-n", NAME, "-o", "%i %T"]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return [line.split() for line in done.stdout.splitlines() if "COMPLETING" not in line]


def clear():
    """Cancel what is left of a test, and wait until the processors are free."""
    subprocess.run(["scancel", "-n", NAME], check=True)
    words = ["squeue", "-h", "-n", NAME]
    until(lambda: not subprocess.run(words, capture_output=True).stdout.strip())


def assert_finished(place, sweep, serial):
    assert sweep.wait() == 0, sweep.said() + logs(place)
    assert table_of(place) == serial
    assert not list((place / "faults").iterdir())


INTERRUPT = signal.SIGINT
