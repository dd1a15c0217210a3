"""F4, F5, F6, F9, F10, F12 to F15: files, disks, failures inside, other machines, W&B, clocks."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from mortal_runs import (
    MORTAL,
    OFTEN,
    RUN,
    Child,
    assert_same,
    die,
    empty,
    finish,
    flip,
    halve,
    home,
    imported,
    load,
    run_of,
)  # fmt: skip
from torch import nn

from sparsebench import environment
from sparsebench.config.compose import compose
from sparsebench.config.identity import identity
from sparsebench.library import method
from sparsebench.sparsity.session import Session
from sparsebench.training.sparsify import Sparsify


@pytest.fixture(scope="module", autouse=True)
def _imported():
    imported()


@pytest.fixture
def place(tmp_path):
    return home(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody disturbed."""
    return finish(home(tmp_path_factory.mktemp("whole")))[0]


# --- F4, F5: damaged files --------------------------------------------------------------------


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
