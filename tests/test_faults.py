"""F1 to F15: kills, signals, damaged files, a full disk, two processes, clocks that jump.

Each run is a process of its own, forked so that its imports cost nothing, and comes to grief
by its own hand: the network is a user's, and knows how to kill its process.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from sparsebench import environment
from sparsebench.cli import main
from sparsebench.config.compose import compose
from sparsebench.config.identity import identity
from sparsebench.library import method
from sparsebench.sparsity.session import Session
from sparsebench.training.sparsify import Sparsify

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


@pytest.fixture(scope="module", autouse=True)
def _imported():
    """What each child would need seconds for."""
    import sparsebench.tasks.classification
    import sparsebench.training.outcome
    import sparsebench.training.trainer  # noqa: F401 - for the children, not for us


class Child:
    """The command line in a process of its own, in a folder of its own."""

    def __init__(self, folder, *words, limit=None, **env):
        self.out, self.err = folder / "stdout", folder / "stderr"
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


@pytest.fixture
def place(tmp_path):
    return home(tmp_path)


def run_of(folder):
    (found,) = (folder / "runs").iterdir()
    return found


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody disturbed."""
    return finish(home(tmp_path_factory.mktemp("whole")))[0]


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


# --- F1: SIGKILL ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "at",
    [
        "1+0",  # before there is a checkpoint
        "4+0", "5+0", "6+0",  # masks are updated after step 4
        "10+0",  # the last batch of an epoch
        "10+1",  # its validation
        "11+0",  # the first batch of the next
        "30+2",  # the test: all is trained, and there is no result yet
    ],
)  # fmt: skip
def test_f1_killed_it_ends_as_if_it_had_not_been(place, whole, at):
    run = die(place, OFTEN, DIE_AT=at)
    if at != "1+0":
        assert load(run / "last.ckpt")["global_step"] == int(at[:-2]) - (at != "30+2")
    finish(place, OFTEN)
    assert_same(run, whole)
    steps = [line.split(",")[1] for line in (run / "metrics.csv").read_text().splitlines()]
    assert steps == ["step", "10", "20", "30"]


@settings(
    max_examples=3, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(deaths=st.lists(st.integers(1, 12), min_size=1, max_size=3), often=st.booleans())
def test_f1_killed_again_and_again(tmp_path_factory, whole, deaths, often):
    folder = home(tmp_path_factory.mktemp("again"))
    words = [OFTEN] if often else []  # else it goes back to the last epoch's end
    for step in deaths:
        die(folder, *words, DIE_AT=f"{step}+0")
    assert_same(finish(folder, *words)[0], whole)


@pytest.mark.parametrize(
    "words",
    [
        ["method=snfs", "method.every=1ep", "optimizer=adamw"],
        ["method=gmp", "method.every=3it", "trainer.ema=0.9", "trainer.clip=1"],
        ["trainer.accumulate=2", "trainer.mixup=0.4", "trainer.label_smoothing=0.1"],
    ],
    ids=lambda words: words[0],
)
def test_f1_whatever_the_run_keeps_in_mind(tmp_path, words):
    whole, _ = finish(home(tmp_path / "whole"), *words)
    run = die(home(tmp_path / "killed"), OFTEN, *words, DIE_AT="15+0")
    finish(tmp_path / "killed", OFTEN, *words)
    assert_same(run, whole)


def test_f1_early_stopping_stays_stopped(tmp_path):
    words = ["trainer.patience=1", "optimizer.lr=3", "epochs=12"]
    whole, _ = finish(home(tmp_path / "whole"), *words)
    steps = load(whole / "last.ckpt")["global_step"]
    assert steps < 120
    run = die(home(tmp_path / "killed"), *words, DIE_AT=f"{steps}+2")
    finish(tmp_path / "killed", *words)
    assert_same(run, whole)


# --- F2: SIGKILL while a checkpoint is written ------------------------------------------------


def test_f2_a_half_written_checkpoint_costs_nothing(place, whole):
    run = die(place, OFTEN, DIE_WRITING=8)
    assert load(run / "last.ckpt")["global_step"] == 7
    assert len(list(run.glob(".*.tmp"))) == 1
    finish(place, OFTEN)
    assert list(run.glob(".*.tmp")) == []
    assert_same(run, whole)


@pytest.mark.parametrize("rename", [9, 10])  # two for each checkpoint but the first
def test_f2_killed_between_two_renames(place, whole, rename):
    run = die(place, OFTEN, DIE_RENAMING=rename)
    there = [load(p)["global_step"] for p in run.glob("*.ckpt") if not p.name.startswith("fresh")]
    assert there
    finish(place, OFTEN)
    assert_same(run, whole)
    assert sorted(p.name for p in run.glob("*.ckpt")) == ["last.ckpt"]


# --- F3: signals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "at"),
    [
        *((number, "15+0") for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)),
        # the last step of an epoch, its validation, the last step of all, the test
        *((signal.SIGINT, at) for at in ("20+0", "20+1", "30+0", "30+2")),
    ],
)
def test_f3_a_signal_stops_it_cleanly(place, whole, number, at):
    child = Child(place, *RUN, DIE_AT=at, DIE_BY=int(number))
    assert child.wait() == 128 + number
    (line,) = child.lines()
    assert line.startswith(f"sparsebench: interrupted by {number.name}")
    assert line.endswith("; the same command goes on")
    if at == "15+0":
        assert " at step 15;" in line
        assert load(run_of(place) / "last.ckpt")["global_step"] == 15
    run, _ = finish(place)
    assert_same(run, whole)


def test_f3_twice_stops_at_once(place, whole):
    child = Child(place, *RUN, OFTEN, DIE_AT="15+0", DIE_BY=int(signal.SIGINT), DIE_TIMES=2)
    assert child.wait() == 130
    assert len(child.lines()) == 1
    run = run_of(place)
    assert load(run / "last.ckpt")["global_step"] == 14  # the step is not waited for
    finish(place)
    assert_same(run, whole)


def test_f3_before_anything_is_written(place):
    child = Child(place, *RUN, DIE_EARLY=1, DIE_BY=int(signal.SIGTERM))
    assert child.wait() == 143
    assert child.lines() == ["sparsebench: interrupted by SIGTERM; the same command goes on"]
    assert not (place / "runs").exists()


@pytest.mark.parametrize(
    ("scontrol", "said"),
    [
        ('echo "$@" > called', "job 77 is requeued and goes on"),
        ("exit 1", "the same command goes on"),
    ],
)
def test_f3_slurm_requeues_on_usr1(place, scontrol, said):
    (place / "scontrol").write_text(f"#!/bin/sh\n{scontrol}\n")
    (place / "scontrol").chmod(0o755)
    env = {"SLURM_JOB_ID": "77", "PATH": f"{place}:{os.environ['PATH']}"}
    child = Child(place, *RUN, DIE_AT="5+0", DIE_BY=int(signal.SIGUSR1), **env)
    assert child.wait() == 138
    (line,) = child.lines()
    assert line.endswith(said)
    assert load(run_of(place) / "last.ckpt")["global_step"] == 5
    if "called" in scontrol:
        assert (place / "called").read_text() == "requeue 77\n"


# --- F4, F5: damaged files --------------------------------------------------------------------


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    """One bit, in the middle of a weight."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [halve, empty, flip])
def test_f4_a_damaged_checkpoint_is_set_aside_for_the_one_before(place, whole, damage):
    run = die(place, OFTEN, DIE_AT="15+0")
    damage(run / "last.ckpt")
    _, lines = finish(place, OFTEN)
    assert len(lines) == 1
    assert lines[0].startswith(f"sparsebench: {run.relative_to(place)}/last.ckpt is ")
    assert lines[0].endswith("; set aside as last.ckpt.damaged")
    assert (run / "last.ckpt.damaged").exists()
    assert_same(run, whole)


def test_f4_without_any_whole_checkpoint_it_starts_anew(place, whole):
    run = die(place, OFTEN, DIE_AT="15+0")
    halve(run / "last.ckpt")
    flip(run / "previous.ckpt")
    _, lines = finish(place, OFTEN)
    assert [line.partition("set aside as ")[2] for line in lines] == [
        "last.ckpt.damaged",
        "previous.ckpt.damaged",
    ]
    assert_same(run, whole)


def test_f5_a_damaged_result_counts_as_not_there(place, whole):
    run, _ = finish(place)
    halve(run / "result.json")
    _, lines = finish(place)
    assert lines == [
        "sparsebench: "
        f"{run.relative_to(place)}/result.json is damaged and counts as not there; "
        "set aside as result.json.damaged"
    ]
    assert_same(run, whole)


def test_f5_a_result_of_an_older_schema_is_named_and_made_again(place, whole):
    run, _ = finish(place)
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"schema": 0, "status": "finished"}))
    _, lines = finish(place)
    assert lines == [
        f"sparsebench: {run.relative_to(place)}/result.json is of schema 0, not 1, and is not used"
    ]
    assert_same(run, whole)


# --- F6: no room ------------------------------------------------------------------------------


def test_f6_a_full_disk_is_named_and_what_was_there_stands(place, whole):
    run = die(place, OFTEN, DIE_AT="15+0")
    size = (run / "last.ckpt").stat().st_size
    child = Child(place, *RUN, OFTEN, limit=size // 2, PATH="")  # without git, no source.diff
    assert child.wait() == 2
    (line,) = child.lines()
    assert f"{run.relative_to(place)}/fresh-last.ckpt: can't be written (File too large)" in line
    needed = int(line.partition("; ")[2].split()[0])
    assert abs(needed - size) < 1000
    assert load(run / "last.ckpt")["global_step"] == 14
    assert list(run.glob(".*.tmp")) == []
    finish(place, OFTEN)
    assert_same(run, whole)


def test_f6_without_room_for_the_first_checkpoint_nothing_is_left(place):
    child = Child(place, *RUN, limit=5000, PATH="")  # room for the config, not for a checkpoint
    assert child.wait() == 2
    assert len(child.lines()) == 1
    assert not (place / "runs").exists()


# --- F7: two processes ------------------------------------------------------------------------


def test_f7_the_second_of_two_waits_and_trains_nothing(place, whole):
    first = Child(place, *RUN, DIE_AT="15+0", DIE_BY=int(signal.SIGSTOP))
    assert first.wait(os.WUNTRACED) == -signal.SIGSTOP
    run = run_of(place)
    second = Child(home(place / "second"), *RUN, f"runs={place}/runs", DIE_AT="1+0")
    until = time.monotonic() + 60
    while not (second.err.exists() and second.lines()) and time.monotonic() < until:
        time.sleep(0.02)
    (line,) = second.lines()
    assert f"is already running (process {first.pid} on {os.uname().nodename}); waiting" in line
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait() == 0
    assert second.wait() == 0  # it would have died at its first step
    assert second.out.read_text().splitlines()[-1] == f"{run}/result.json"
    assert not (run / "owner.json").exists()
    assert_same(run, whole)


def test_f7_a_dead_process_holds_nothing(place, whole):
    run = die(place, DIE_AT="15+0")
    assert json.loads((run / "owner.json").read_text())["host"] == os.uname().nodename
    _, lines = finish(place)
    assert lines == []
    assert_same(run, whole)


# --- F9, F10: failures inside -----------------------------------------------------------------


def test_f9_out_of_memory_is_recorded_as_failed_and_asked_again(place, whole):
    (place / "mortal.py").write_text(
        MORTAL.replace("            die()", "            raise MemoryError")
    )
    child = Child(place, *RUN, DIE_AT="15+0")
    assert child.wait() == 1
    (line,) = child.lines()
    assert " failed: MemoryError" in line
    run = run_of(place)
    assert json.loads((run / "result.json").read_text())["status"] == "failed"
    assert (run / "error.txt").read_text().rstrip().endswith("MemoryError")
    finish(home(place))
    assert not (run / "error.txt").exists()
    assert_same(run, whole)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_f10_a_gradient_that_is_not_finite_moves_no_mask(bad):
    torch.manual_seed(0)
    model = nn.Linear(20, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = Session(
        method("rigl", sparsity=0.5, every="1it"), model, optimizer, total_steps=8, seed=0
    )
    digests = [session.masks.digest()]
    for step in range(4):
        session.before_forward()
        optimizer.zero_grad()
        model(torch.randn(4, 20)).square().sum().backward()
        if step == 2:
            model.weight.grad[3, 7] = bad
        kept = model.weight.detach().clone()
        session.after_backward()
        optimizer.step()
        if step == 2:  # the scaler of mixed precision would have left such a step out
            model.weight.data.copy_(kept)
        session.after_step()
        digests.append(session.masks.digest())
    assert digests[0] != digests[1] != digests[2] == digests[3] != digests[4]
    (note,) = session.state.notes
    assert "step 3" in note


def test_f10_a_step_that_mixed_precision_leaves_out_does_not_count():
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.plugins import MixedPrecision

    class Net(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(20, 10)

        def training_step(self, batch, index):
            loss = self.net(batch).float().square().sum()
            return loss * float("inf") if index == 1 else loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.001)

    torch.manual_seed(0)
    sparsify = Sparsify(method("rigl", sparsity=0.5, every="1it"), seed=0)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", callbacks=[sparsify], plugins=[plugin], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Net(), torch.utils.data.DataLoader(torch.randn(6, 20), batch_size=1))
    assert trainer.global_step == 6
    assert sparsify.session.state.step == 5
    assert sparsify.session.masks.nonzeros == {"net.weight": 100}


# --- F12: resumed elsewhere -------------------------------------------------------------------


@pytest.mark.parametrize("word", ["trainer.accumulate=2", "trainer.devices=2", "batch_size=64"])
def test_f12_other_ranks_or_accumulation_make_another_run(word):
    assert identity(compose([word])) != identity(compose())


@pytest.mark.parametrize(
    ("key", "value"), [("torch", "0.4.1"), ("device", "cuda"), ("threads", 64)]
)
def test_f12_resuming_on_another_machine_is_noted(place, key, value):
    run = die(place, OFTEN, DIE_AT="15+0")
    kept = load(run / "last.ckpt")
    now = kept["sparsebench"][key]
    kept["sparsebench"][key] = value
    torch.save(kept, run / "last.ckpt")
    die(place, OFTEN, DIE_AT="5+0")  # resumed once more at home, it still is what it was
    finish(place, OFTEN)
    note = f"not bitwise: {key} was {value}, is {now}, on resuming"
    assert json.loads((run / "result.json").read_text())["notes"] == [note]


# --- F11: two ranks ----------------------------------------------------------------------------

PAIR = ["trainer=ddp_cpu", "epochs=2"]


@pytest.mark.slow
def test_f11_two_ranks_killed_end_as_if_they_had_not_been(tmp_path):
    whole, _ = finish(home(tmp_path / "whole"), *PAIR)
    assert (whole / "ranks.log").read_text() == ""
    run = die(home(tmp_path / "killed"), OFTEN, *PAIR, DIE_AT="15+0")  # both die
    assert load(run / "last.ckpt")["global_step"] == 14
    flip(run / "last.ckpt")  # both must go back to the one before
    _, lines = finish(tmp_path / "killed", OFTEN, *PAIR)
    assert len(lines) == 1
    assert_same(run, whole)


@pytest.mark.slow
def test_f11_a_rank_that_dies_before_it_begins_is_not_waited_for(place):
    child = Child(place, *RUN, *PAIR, DIE_EARLY=1, DIE_RANK=1)
    assert child.wait() == 1
    (line,) = child.lines()
    assert line.endswith(" failed: RuntimeError: rank 1 ended with -9:")


# --- F13: W&B ---------------------------------------------------------------------------------


def test_f13_without_a_server_training_goes_on_offline(place, whole):
    run, lines = finish(
        place, "logger=wandb", WANDB_MODE="online", WANDB_API_KEY="a" * 40,
        WANDB_BASE_URL="http://127.0.0.1:9", WANDB_INIT_TIMEOUT=1,
    )  # fmt: skip
    (line,) = [line for line in lines if line.startswith("sparsebench: ")]
    assert line.startswith("sparsebench: W&B is offline (")
    offline = Path(line.partition("'wandb sync ")[2].partition("'")[0])
    assert list((place / offline).glob("*.wandb"))
    assert offline.parent.parent == run.relative_to(place)
    assert_same(run, whole)


# --- F14: git and folders ---------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with one commit, which the package believes to be its own."""
    (tmp_path / "sparsebench").mkdir()
    (tmp_path / "sparsebench" / "__init__.py").write_text("a = 1\n")
    monkeypatch.setattr(
        environment.sparsebench, "__file__", str(tmp_path / "sparsebench" / "__init__.py")
    )
    return tmp_path


def commit(folder):
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    done = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_f14_a_clean_tree_is_its_commit(checkout):
    revision = commit(checkout)
    assert environment._revision.__wrapped__() == {"commit": revision}


def test_f14_a_dirty_tree_is_recorded_with_its_difference(checkout, tmp_path, monkeypatch):
    revision = commit(checkout)
    (checkout / "sparsebench" / "__init__.py").write_text("a = 2\n")
    monkeypatch.setattr(environment, "_revision", environment._revision.__wrapped__)
    found = environment.describe(tmp_path)
    assert found["revision"] == revision
    assert len(found["revision_diff"]) == 16
    assert "-a = 1\n+a = 2\n" in (tmp_path / "source.diff").read_text()


def test_f14_without_a_checkout_or_without_git(checkout, monkeypatch):
    assert environment._revision.__wrapped__() == {}
    commit(checkout)
    monkeypatch.setenv("PATH", str(checkout))
    assert environment._revision.__wrapped__() == {}


def test_f14_a_folder_that_cannot_be_is_one_line_before_training(place):
    (place / "runs").write_text("a file")
    child = Child(place, *RUN, DIE_EARLY=1)  # the network is not even imported
    assert child.wait() == 2
    (line,) = child.lines()
    assert (
        line == f"sparsebench: runs={place}/runs: '{place}/runs' is a file, and a folder is needed"
    )
    assert (place / "runs").read_text() == "a file"


# --- F15: clocks ------------------------------------------------------------------------------


def test_f15_a_clock_that_runs_backwards_changes_nothing(place, whole):
    run = die(place, OFTEN, DIE_AT="15+0", CLOCK=1)
    os.utime(run / "previous.ckpt", (2e9, 2e9))  # the older of the two looks newer
    finish(place, OFTEN, CLOCK=1)
    assert_same(run, whole)


def test_f15_two_runs_in_one_second_are_two_runs(place, whole):
    one, two = (Child(place, *RUN, f"seed={seed}", CLOCK=1) for seed in (0, 1))
    assert one.wait() == 0
    assert two.wait() == 0
    runs = {path.name for path in (place / "runs").iterdir()}
    assert len(runs) == 2
    assert_same(place / "runs" / whole.name, whole)
