"""Sweeps from the command line: skipped, failed, killed and stopped runs; launchers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparsebench.claim import living_owner
from sparsebench.cli import main

#: A network that fails in a chosen way; in a folder of the user's, found by its import path.
FAULTY = """
import os, signal, sys
from torch import nn

class Net(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.mode, self.body = mode, nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x):
        if self.training and self.mode == "raise":
            raise RuntimeError("out of luck")
        if self.training and self.mode == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.training and self.mode == "exit":
            sys.exit(3)
        return self.body(x) * (float("nan") if self.training and self.mode == "blow" else 1)

def net(input_shape=None, num_classes=10, width=1.0, mode="fine"):
    if mode == "build":
        raise ZeroDivisionError("at build")
    return Net(mode)
"""
FAST = ["epochs=1", "plots=false", "data.validation=0", "method.every=2it", "batch_size=256"]
CUSTOM = ["model=custom", "model._target_=faulty.net", "allow=[faulty]", "method=static", *FAST]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("faulty", None)
    Path("faulty.py").write_text(FAULTY)
    return tmp_path


def sweep(*words):
    with pytest.raises(SystemExit) as done:
        main(["-m", *words])
    return done.value.code


def command(*words):
    return [sys.executable, "-m", "sparsebench", "-m", *words]


def results():
    found = {}
    for path in sorted(Path("runs").glob("*/result.json")):
        content = json.loads(path.read_text())
        found[path.parent.name] = content
    return found


def stamps():
    return {path: path.stat().st_mtime_ns for path in Path("runs").glob("*/result.json")}


def test_grid_runs_once_and_is_not_run_again(folder, capsys):
    words = ["method=dense,static", "sparsity=0.5,0.9", "model=tiny_mlp", *FAST]
    assert sweep(*words) == 0
    first, shown = stamps(), capsys.readouterr()
    assert len(first) == 3  # dense is one run at both sparsities
    assert shown.err.count("finished") == 3
    assert "[3/3] static, sparsity 0.9, seed 0: finished" in shown.err
    assert {run["config"]["logger"]["group"] for run in results().values()} == {"grid"}
    assert sorted(os.listdir()) == ["faulty.py", "runs"]  # Hydra leaves nothing of its own
    (table,) = Path("runs/tables").glob("*/table.md")
    text = table.read_text()
    assert sweep(*words) == 0
    again = capsys.readouterr()
    assert stamps() == first
    assert again.err == ""
    assert str(table.resolve()) in again.out
    assert table.read_text() == text
    assert sweep(*words, "sparsity=0.5,0.7,0.9") == 0  # the key comes twice: the last counts
    assert len(stamps()) == 4
    assert {path: stamps()[path] for path in first} == first


def test_failures_let_the_others_go_on_and_are_tried_again(capsys):
    words = [*CUSTOM, "+model.args.mode=raise,exit,blow,build,fine"]
    assert sweep(*words) == 1
    shown = capsys.readouterr()
    by_mode = {r["config"]["model"]["args"]["mode"]: r["status"] for r in results().values()}
    assert by_mode == {"raise": "failed", "blow": "diverged", "fine": "finished"}
    for said in ("RuntimeError: out of luck", "it called sys.exit(3)", "at build", "diverged"):
        assert said in shown.err
    assert "4 of 5 runs have no result" in shown.err
    assert "| raise | – (0 of 1) |" in next(Path("runs/tables").glob("*/table.md")).read_text()
    before = stamps()
    Path("faulty.py").write_text(FAULTY.replace("raise RuntimeError", "RuntimeError"))
    sys.modules.pop("faulty")
    assert sweep(*words) == 1
    after = {r["config"]["model"]["args"]["mode"]: r["status"] for r in results().values()}
    assert after == {"raise": "finished", "blow": "diverged", "fine": "finished"}
    changed = [path for path in before if stamps()[path] != before[path]]
    assert len(changed) == 1  # a diverged run is not tried again


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method=set,rigl", "sparsity=0.9,1.5"], "sparsity=1.5: a number in [0, 1) is needed"),
        (["method=set,rigI"], "method=rigI: no such option"),
        (["optimizer.lr=interval(0,1)"], "an interval has no grid"),
        (["+table=quik"], "table=quik: no such option; there are "),
        (["method=set,rigl", "hydra/launcher=slurmm"], "slurmm"),
    ],
)
def test_a_mistake_in_one_cell_runs_nothing(words, said, capsys):
    assert sweep(*words, "epochs=1", "method.every=2it") == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.count("\n") == 1
    assert sorted(os.listdir()) == ["faulty.py"]


def test_a_table_needs_m(capsys):
    with pytest.raises(SystemExit) as done:
        main(["table=quick"])
    assert done.value.code == 2
    assert capsys.readouterr().err == "sparsebench: table: a table is made of many runs; add -m\n"


def test_table_narrowed_lands_beside_the_runs(capsys):
    words = ["+table=quick", "hydra/launcher=basic", "method=static", "sparsity=0.9", "seed=0,1"]
    assert sweep(*words, "epochs=1", "method.every=2it") == 0
    assert not Path("results").exists()
    (table,) = Path("runs/tables").glob("quick-*/table.md")
    text = table.read_text()
    assert "| Static (ER) |" in text
    assert "(2) |" in text
    assert "Table 'quick' with other settings than its own" in text
    (config,) = {r["config"]["distribution"]["name"] for r in results().values()}
    assert config == "er"


def test_table_of_ones_own_lands_in_results(folder):
    Path("own/table").mkdir(parents=True)
    Path("own/table/mine.yaml").write_text(
        "name: mine\ntitle: Mine\nscales: {tiny: {setup: small}}\n"
        "rows: {key: method, values: [static]}\n"
        "columns: {key: sparsity, values: [0.5]}\n"
        "overrides: [epochs=1, model=tiny_mlp, plots=false, batch_size=256]\n"
    )
    assert sweep("--config-dir", "own", "+table=mine") == 0
    made = sorted(path.name for path in Path("results/mine/tiny").iterdir())
    files = ["claims.json", "report.html", "table.csv", "table.md", "table.tex"]
    assert made == files  # it asks for no picture
    Path("own/table/mine.yaml").write_text("name: mine\ntitle: Mine\nscala: tiny\n")
    assert sweep("--config-dir", "own", "+table=mine") == 2


def test_a_second_call_imports_no_torch(folder):
    words = ["method=static", "sparsity=0.5,0.9", "model=tiny_mlp", *FAST]
    assert sweep(*words) == 0
    code = (
        "import sys\nfrom sparsebench.cli import main\n"
        f"try:\n    main({['-m', *words]!r})\n"
        "except SystemExit as done:\n    assert done.code == 0\n"
        "assert 'matplotlib' in sys.modules and 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_joblib_gives_what_basic_gives_and_survives_a_killed_worker(folder):
    words = [*CUSTOM, "+model.args.mode=fine,kill", "hydra/launcher=joblib"]
    done = subprocess.run(command(*words), capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "kill, seed 0: killed: its process ended by SIGKILL" in done.stderr
    assert "1 of 2 runs have no result" in done.stderr
    ((name, parallel),) = results().items()
    cores = len(os.sched_getaffinity(0))
    assert parallel["config"]["trainer"]["threads"] == max(1, cores // 2)
    assert sweep(*CUSTOM, "+model.args.mode=exit,fine", "runs=serial") == 1
    serial = json.loads((Path("serial") / name / "result.json").read_text())
    assert serial["metrics"]["weights_sha256"] == parallel["metrics"]["weights_sha256"]


def wait_for(found, seconds=60):
    until = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("signum", "launcher", "code"),
    [
        (signal.SIGKILL, "basic", -signal.SIGKILL),
        (signal.SIGINT, "joblib", 130),
    ],
)
def test_stopped_in_the_middle_the_same_command_goes_on(folder, signum, launcher, code):
    slow = ["model=tiny_mlp", "method=static", "plots=false", "epochs=150", "seed=range(0,4)"]
    words = [*slow, f"hydra/launcher={launcher}"]
    process = subprocess.Popen(command(*words), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: results() and any(map(living_owner, Path("runs").iterdir())))
    process.send_signal(signum)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code, said
    if signum != signal.SIGKILL:
        assert "runs are done" in said
        assert "the same command goes on" in said
        assert "Traceback" not in said
    before = stamps()
    assert 1 <= len(before) < 4
    assert {content["status"] for content in results().values()} == {"finished"}
    assert sweep(*slow) == 0
    assert len(stamps()) == 4
    assert {path: stamps()[path] for path in before} == before
