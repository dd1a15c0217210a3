"""A run in W&B, by the real client: what it writes, how it resumes, and what its faults cost."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mortal_runs import OFTEN, RUN, Child, assert_same, die, finish, home, imported
from wandb_server import offline_records, online, read_back, sent, server, silent_server

from sparsebench.config.compose import compose
from sparsebench.config.identity import identity
from sparsebench.dashboard.names import logger_overrides

W = ["logger=wandb", *logger_overrides("cifar", "quick")]
OFFLINE = {"WANDB_MODE": "offline"}


@pytest.fixture(scope="module", autouse=True)
def _imported():
    imported()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that W&B was told of offline, and what the command said."""
    return finish(home(tmp_path_factory.mktemp("whole")), *W, **OFFLINE)


@pytest.fixture
def place(tmp_path):
    return home(tmp_path)


def rows_of(run):
    """What W&B must have: the rows of both files by the standard library alone."""
    with (run / "metrics.csv").open() as metrics, (run / "density.csv").open() as density:
        pairs = zip(csv.DictReader(metrics), csv.DictReader(density), strict=True)
        return [
            {k: float(v) for k, v in row.items()}
            | {
                f"density/{k.replace('.', '/')}": float(v)
                for k, v in layers.items()
                if k != "epoch"
            }
            for row, layers in pairs
        ]


def test_rows_summary_and_config_are_those_of_the_runs_files(whole):
    run, _ = whole
    (path,) = offline_records(run)
    found = read_back(path)
    assert found["rows"] == rows_of(run)
    assert [row["epoch"] for row in found["rows"]] == [1, 2, 3]
    assert found["summary"] == json.loads((run / "result.json").read_text())["metrics"]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert found["config"].pop("cell").startswith("digits-custom-rigl-0.8-")
    assert found["config"] == config
    assert found["exit"] == 0


def test_the_run_is_named_by_its_identity_and_grouped_by_its_table(whole):
    run, _ = whole
    (path,) = offline_records(run)
    found = read_back(path)["run"]
    assert (found.run_id, found.run_group, found.job_type) == (run.name, "cifar", "classification")
    assert list(found.tags) == ["rigl", "digits", "custom", "quick"]
    assert found.display_name == "rigl 0.8 custom digits #0"
    assert found.project == "sparsebench"


def test_the_command_that_uploads_is_told(whole):
    run, lines = whole
    (path,) = offline_records(run)
    place = path.parent.relative_to(run.parent.parent)
    assert f"sparsebench: W&B is offline; 'wandb sync {place}' uploads" in lines


def test_a_run_resumed_offline_leaves_one_complete_record(place, whole):
    die(place, OFTEN, *W, DIE_AT="25+0", **OFFLINE)
    run, _ = finish(place, OFTEN, *W, **OFFLINE)
    (path,) = offline_records(run)
    assert read_back(path)["rows"] == rows_of(whole[0])
    assert_same(run, whole[0])


def test_a_resumed_run_goes_on_in_the_same_wandb_run(place, whole):
    with server() as wandb:
        die(place, OFTEN, *W, DIE_AT="25+0", **online(wandb.url))
        before = [row["epoch"] for row in sent(wandb.runs[whole[0].name])]
        run, _ = finish(place, OFTEN, *W, **online(wandb.url))
        assert list(wandb.runs) == [run.name]
        assert sent(wandb.runs[run.name]) == rows_of(run)
        assert wandb.runs[run.name]["exit"] == 0
    assert before in ([], [1], [1, 2])  # as much as was sent when it was killed
    assert_same(run, whole[0])


def test_a_server_that_never_answers_costs_a_wait_and_nothing_else(place, whole):
    with silent_server() as (url, held):
        run, lines = finish(place, *W, **online(url, WANDB_INIT_TIMEOUT="1"))
        assert held
    (line,) = [line for line in lines if line.startswith("sparsebench: ")]
    assert line.startswith("sparsebench: W&B is offline (")
    assert line.endswith("uploads")
    assert_same(run, whole[0])


def test_a_server_that_was_given_up_is_not_waited_for_again(tmp_path):
    script = """
import sys
from pathlib import Path
from sparsebench.dashboard.client import View
from wandb_server import silent_server, online
import os
config = {"logger": {"project": "p", "entity": None, "group": None, "tags": []}, "sparsity": 0.5,
          "seed": 0, **{key: {"name": key} for key in ("task", "method", "data", "model")}}
with silent_server() as (url, held):
    os.environ.update(online(url, WANDB_INIT_TIMEOUT="1"))
    for name in ("one-0-a", "two-0-b"):
        Path(name).mkdir()
        view = View(config, Path(name), "online")
        print(view.offline, len(held))
        view.close({}, failed=False)
"""
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, text=True, timeout=100,
                         capture_output=True,
                         env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)})  # fmt: skip
    first, second = ran.stdout.split("\n")[:2]
    assert first == second
    assert first.startswith("True ")
    assert first != "True 0"


def test_a_server_that_stops_taking_rows_holds_the_end_up_for_its_time_only(place, whole):
    with server() as wandb:
        wandb.stalled.set()
        run, lines = finish(place, *W, **online(wandb.url, WANDB_FINISH_TIMEOUT="1"))
        said = [line for line in lines if line.startswith("sparsebench: ")]
        assert said == [
            "sparsebench: logger left out, closing: TimeoutError: not all is uploaded; "
            f"'sparsebench push runs/{run.name}' does it"
        ]
        wandb.stalled.clear()
        assert Child(place, "push", "runs", **online(wandb.url)).wait() == 0
        assert sent(wandb.runs[run.name]) == rows_of(run)
    assert_same(run, whole[0])


def test_a_run_that_is_stopped_does_not_wait_for_wandb(place, whole):
    with server() as wandb:
        wandb.stalled.set()
        tell = online(wandb.url, WANDB_FINISH_TIMEOUT="1")
        child = Child(place, *RUN, *W, DIE_AT="25+0", DIE_BY=int(signal.SIGTERM), **tell)
        assert child.wait() == 128 + signal.SIGTERM
        assert not any("logger left out" in line for line in child.lines())
        wandb.stalled.clear()
        run, _ = finish(place, *W, **online(wandb.url))
        assert sent(wandb.runs[run.name]) == rows_of(run)
    assert_same(run, whole[0])


def test_without_the_package_the_run_goes_on(place, whole):
    with (place / "mortal.py").open("a") as file:
        file.write("\nimport sys\nsys.modules['wandb'] = None\n")
    run, lines = finish(place, *W, **OFFLINE)
    (line,) = [line for line in lines if line.startswith("sparsebench: ")]
    assert line.startswith("sparsebench: logger left out, opening Wandb: ModuleNotFoundError: ")
    assert not (run / "wandb").exists()
    assert (run / "metrics.csv").read_bytes() == (whole[0] / "metrics.csv").read_bytes()


def test_a_diverged_run_ends_as_failed_with_its_step(place):
    child = Child(place, *RUN, *W, "optimizer.lr=1e30", **OFFLINE)
    assert child.wait() == 1
    (run,) = (place / "runs").iterdir()
    (path,) = offline_records(run)
    result = json.loads((run / "result.json").read_text())
    assert read_back(path)["summary"] == result["metrics"]
    assert list(result["metrics"]) == ["diverged/step"]
    assert read_back(path)["exit"] == 1


@pytest.mark.parametrize(
    ("table", "scale"), [("cifar", "quick"), ("my table, it's", ""), ("1", "2")]
)
def test_a_sweeps_overrides_name_group_and_tags_and_no_identity(table, scale):
    cfg = compose(["method=rigl", *logger_overrides(table, scale)], None)
    assert cfg.logger.group == table
    assert list(cfg.logger.tags) == ([scale] if scale else [])
    assert identity(cfg) == identity(compose(["method=rigl"], None))


def test_what_the_user_gives_stays():
    assert logger_overrides("cifar", "quick", ["+logger.group=mine", "seed=1"]) == [
        'logger.tags=["quick"]'
    ]
