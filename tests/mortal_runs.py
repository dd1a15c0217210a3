"""Runs that come to grief by their own hand, each in a process of its own.

The network is a user's, and knows how to kill its process at a given forward pass. The
processes are forked, so that their imports cost nothing.
"""

import json
import logging
import os
import resource
import signal
import sys
import time
import traceback

import torch

from sparsebench import environment
from sparsebench.cli import main

MORTAL = '''
import os, signal, time
from pathlib import Path

import torch
from torch import nn

train, since, saves, renames = 0, 0, 0, 0
die_by = int(os.environ.get("DIE_BY", signal.SIGKILL))


def die():
    for _ in range(int(os.environ.get("DIE_TIMES", "1"))):
        os.kill(os.getpid(), die_by)


class Net(nn.Module):
    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.fc1, self.norm = nn.Linear(64, 16), nn.BatchNorm1d(16)
        self.fc2 = nn.Linear(16, num_classes)

    def forward(self, x):
        global train, since
        if len(x) > 2:  # else the model is only being looked at
            train, since = (train + 1, 0) if self.training else (train, since + 1)
        if os.environ.get("DIE_AT") == f"{train}+{since}":
            die()
        x = torch.relu(self.norm(self.fc1(x.flatten(1))))
        return self.fc2(nn.functional.dropout(x, 0.2, self.training))


class Half:
    """Takes half of what is written to it, then the process dies."""

    def __init__(self, file):
        self.file, self.left = file, 3000

    def write(self, data):
        self.file.write(bytes(data)[: self.left])
        self.left -= len(bytes(data))
        if self.left <= 0:
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return len(bytes(data))


def save(value, file, real=torch.save):
    global saves
    saves += 1
    real(value, Half(file) if os.environ.get("DIE_WRITING") == str(saves) else file)


def replace(path, target, real=Path.replace):
    global renames
    renames += 1
    if os.environ.get("DIE_RENAMING") == str(renames):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(path, target)


torch.save, Path.replace = save, replace
if "DIE_EARLY" in os.environ:
    if os.environ.get("LOCAL_RANK", "0") == os.environ.get("DIE_RANK", "0"):
        die()
if "CLOCK" in os.environ:
    clock = iter(range(10**9, 0, -1))
    time.time = lambda: float(next(clock))
'''
RUN = [
    "model=custom", "model._target_=mortal.Net", "allow=[mortal]", "data=digits",
    "method=rigl", "method.every=4it", "sparsity=0.8", "epochs=3", "batch_size=128",
    "trainer.threads=1", "trainer.accelerator=cpu", "plots=false",
]  # fmt: skip
OFTEN = "trainer.checkpoint_every=0"
STEPS = 30  # 3 epochs of 10, of 1,293 images in batches of 128


def imported():
    """Import what each child would need seconds for."""
    import sparsebench.tasks.classification
    import sparsebench.training.outcome
    import sparsebench.training.trainer  # noqa: F401 - for the children, not for us


class Child:
    """The command line in a process of its own, in a folder of its own."""

    def __init__(self, folder, *words, limit=None, **env):
        self.out, self.err = folder / "stdout", folder / "stderr"
        if wandb := sys.modules.get("wandb"):  # a child can't use the parent's service
            wandb.teardown()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(folder, words, limit, env)

    def _run(self, folder, words, limit, env):
        code = 70
        try:
            os.chdir(folder)
            os.environ.update({key: str(value) for key, value in env.items()})
            for number, path in ((1, self.out), (2, self.err)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", 1)
            _quiet_handlers()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            environment._revision.cache_clear()
            if limit:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            main(list(words))
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)

    def wait(self, flags=0):
        """Exit code, or minus the signal that ended or stopped it."""
        until = time.monotonic() + 120
        while time.monotonic() < until:
            pid, status = os.waitpid(self.pid, os.WNOHANG | flags)
            if pid and os.WIFSTOPPED(status):
                return -os.WSTOPSIG(status)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise TimeoutError(self.err.read_text())

    def lines(self):
        """What it said on stderr."""
        return self.err.read_text().splitlines()


def home(folder):
    folder.mkdir(exist_ok=True)
    (folder / "mortal.py").write_text(MORTAL)
    return folder


def run_of(folder):
    (found,) = (folder / "runs").iterdir()
    return found


def _quiet_handlers():
    """Handlers of libraries that were set up in a test have its stream, which is closed now."""
    nowhere = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    held = [handler for logger in loggers for handler in getattr(logger, "handlers", [])]
    # a dictConfig empties the list of handlers, and loggers keep theirs
    for handler in held + [reference() for reference in logging._handlerList]:
        if type(handler) is logging.StreamHandler:
            handler.stream = nowhere


def finish(folder, *words, **env):
    """Run to the end; the run's folder and what was said."""
    child = Child(folder, *RUN, *words, **env)
    assert child.wait() == 0, child.err.read_text()
    return run_of(folder), child.lines()


def die(folder, *words, **env):
    child = Child(folder, *RUN, *words, **env)
    assert child.wait() == -signal.SIGKILL, child.err.read_text()
    assert not (run_of(folder) / "result.json").exists()
    return run_of(folder)


def load(path):
    return torch.load(path, weights_only=True)


def differences(a, b, path=""):
    """Places at which two checkpoints differ; what the clock wrote is left out."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [key for key in a.keys() | b.keys() if "seconds" not in str(key)]
        if any(key not in a or key not in b for key in keys):
            return [f"{path}: {a.keys() ^ b.keys()}"]
        return [d for key in keys for d in differences(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return [f"{path}: {len(a)} and {len(b)}"]
        return [d for i in range(len(a)) for d in differences(a[i], b[i], f"{path}/{i}")]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [] if same else [path]


def result_of(run):
    result = json.loads((run / "result.json").read_text())
    timed = ("seconds/", "memory/")
    metrics = {k: v for k, v in result["metrics"].items() if not k.startswith(timed)}
    return {key: result[key] for key in ("identity", "status", "layers", "notes")} | metrics


def assert_same(run, other):
    """Weights, masks, optimizer, generators, counters, rows and result: bit for bit."""
    assert differences(load(run / "last.ckpt"), load(other / "last.ckpt")) == []
    for name in ("metrics.csv", "density.csv"):
        assert (run / name).read_bytes() == (other / name).read_bytes()
    assert result_of(run) == result_of(other)


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    """One bit, in the middle of the largest weight."""
    content = bytearray(path.read_bytes())
    weight = max(load(path)["state_dict"].values(), key=lambda tensor: tensor.numel())
    bits = weight.numpy().tobytes()
    content[content.index(bits) + len(bits) // 2] ^= 1
    path.write_bytes(content)
