"""``sparsebench push``: W&B runs from a run's own files, by the real client."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from filelock import FileLock
from mortal_runs import Child, finish, home, imported
from wandb_server import offline_records, online, read_back, sent, server

from sparsebench.dashboard.push import push
from sparsebench.errors import UserError

OFFLINE = {"WANDB_MODE": "offline"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that W&B was not told of, and the record of the same run that W&B was told of."""
    imported()
    plain, _ = finish(home(tmp_path_factory.mktemp("plain")))
    live, _ = finish(home(tmp_path_factory.mktemp("live")), "logger=wandb", **OFFLINE)
    (path,) = offline_records(live)
    return plain, read_back(path)


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run, in a folder ``runs``."""
    return shutil.copytree(trained[0], tmp_path / "runs" / trained[0].name)


def pushed(run, *words, code=0, **env):
    """Push in a process of its own; what it said on both streams."""
    child = Child(run.parent.parent, "push", *(words or ["runs"]), **env)
    assert child.wait() == code, child.err.read_text()
    return child.out.read_text().splitlines(), child.lines()


def test_offline_the_record_is_that_of_the_live_run(run, trained):
    (line,), said = pushed(run, **OFFLINE)
    (path,) = offline_records(run)
    found, live = read_back(path), trained[1]
    assert found["rows"] == live["rows"]
    assert found["summary"] == json.loads((run / "result.json").read_text())["metrics"]
    assert live["config"].pop("logger")["name"] == "wandb"
    assert found["config"].pop("logger")["name"] == "csv"
    assert found["config"] == live["config"]
    for key in ("run_id", "run_group", "job_type", "tags", "display_name", "project"):
        assert getattr(found["run"], key) == getattr(live["run"], key)
    assert found["exit"] == 0
    place = path.parent.relative_to(run.parent.parent)
    assert line == f"{run.name}: 3 rows, a new and complete record offline; " \
        f"'wandb sync {place}' uploads"  # fmt: skip
    assert said == []


def test_what_was_synced_is_completed_and_nothing_is_there_twice(run):
    pushed(run, **OFFLINE)
    pushed(run, **OFFLINE)
    (path,) = offline_records(run)  # the one before was never synced, and is repeated in this
    rows = read_back(path)["rows"]
    with server() as wandb:
        tell = {**os.environ, **online(wandb.url)}
        sync = [sys.executable, "-m", "wandb", "sync", str(path.parent)]
        subprocess.run(sync, check=True, capture_output=True, timeout=60, env=tell)
        assert sent(wandb.runs[run.name]) == rows
        (line,), _ = pushed(run, **OFFLINE)
        assert line.endswith(f"'sparsebench push runs/{run.name}' uploads")
        (line,), _ = pushed(run, f"runs/{run.name}", **online(wandb.url))
        assert f"{run.name}: 3 rows, 0 of 3 rows were new, {wandb.url}/" in line
        assert sent(wandb.runs[run.name]) == rows


def test_an_unfinished_run_is_pushed_as_far_as_it_is_and_completed_later(run):
    whole = {name: (run / name).read_text() for name in ("metrics.csv", "density.csv")}
    result = (run / "result.json").read_text()
    for name, text in whole.items():
        (run / name).write_text("".join(text.splitlines(True)[:3]))
    (run / "result.json").unlink()
    words = ["runs", "--project", "other", "--entity", "us"]
    with server() as wandb:
        (line,), _ = pushed(run, *words, **online(wandb.url))
        assert line.startswith(f"{run.name}: unfinished, 2 rows, 2 of 2 rows were new, ")
        assert wandb.runs[run.name]["exit"] == 1
        for name, text in {**whole, "result.json": result}.items():
            (run / name).write_text(text)
        (line,), _ = pushed(run, *words, **online(wandb.url))
        assert line.startswith(f"{run.name}: 3 rows, 1 of 3 rows were new, ")
        there = wandb.runs[run.name]
    assert [row["epoch"] for row in sent(there)] == [1, 2, 3]
    summary = json.loads(there["files"]["wandb-summary.json"][-1])
    assert summary.items() >= json.loads(result)["metrics"].items()
    assert (there["project"], there["entity"], there["exit"]) == ("other", "us", 0)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.yaml", None, "is missing"),
        ("config.yaml", "a: [", "is damaged"),
        ("config.yaml", "- 1\n", "is damaged"),
        ("config.yaml", "seed: 1\nsparsity: 0.5\n", "is damaged"),
        ("metrics.csv", None, "is missing"),
        ("metrics.csv", "", "is damaged"),
        ("metrics.csv", "epoch,step\n1,10\n2\n", "is damaged"),
        ("metrics.csv", "epoch,step\n1,ten\n", "is damaged"),
        ("metrics.csv", "epoch,lr\n1,0.1\n", "is damaged"),
        ("density.csv", None, "is missing"),
        ("density.csv", b"\xff\xfe", "is damaged"),
        ("result.json", "{", "is damaged"),
        ("result.json", "[]", "is damaged"),
        ("result.json", '{"status": "finished", "metrics": 1}', "is damaged"),
    ],
)
def test_a_damaged_run_is_named_in_one_line_and_left_out(run, capsys, name, content, said):
    (run / name).unlink()
    if content is not None:
        (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert push([str(run)]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"sparsebench: {run.name}: {run / name} {said}",
        "sparsebench: 1 of 1 runs are not pushed",
    ]
    assert not (run / "wandb").exists()


def test_the_others_are_pushed_all_the_same(run):
    bad = shutil.copytree(run, run.with_name("a-bad-one"))
    (bad / "metrics.csv").write_text("epoch,step\n1,\n")
    (line,), said = pushed(run, code=1, **OFFLINE)
    assert line.startswith(f"{run.name}: 3 rows")
    assert said == [
        "sparsebench: a-bad-one: runs/a-bad-one/metrics.csv is damaged",
        "sparsebench: 1 of 2 runs are not pushed",
    ]


def test_a_running_run_is_left_alone(run, capsys):
    with FileLock(run / ".lock"):
        assert push([str(run)]) == 1
    assert capsys.readouterr().err.splitlines()[0].endswith("is running; push it when it has ended")


def test_mistakes_are_one_line(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for words, said in [
        (["rums"], "push rums: there is no such folder; did you mean 'runs'?"),
        (["runs/nothing-like-it"], "push runs/nothing-like-it: there is no such folder"),
        (["empty"], "push empty: there is no run in this folder"),
        ([], "push: the following arguments are required: RUN_FOLDER; "
             "push RUN_FOLDER... [--project P] [--entity E]"),
        (["runs", "--projekt", "p"], "push: unrecognized arguments: --projekt p; "
                                     "push RUN_FOLDER... [--project P] [--entity E]"),
    ]:  # fmt: skip
        with pytest.raises(UserError) as error:
            push(words)
        assert str(error.value) == said
    monkeypatch.setattr("sparsebench.dashboard.push.find_spec", lambda name: None)
    with pytest.raises(UserError, match="the package wandb is not installed"):
        push(["runs"])


def test_the_command_line_answers_a_mistake_with_2(tmp_path):
    child = Child(tmp_path, "push", "nowhere")
    assert child.wait() == 2
    assert child.lines() == ["sparsebench: push nowhere: there is no such folder"]
