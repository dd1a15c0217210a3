"""The dashboard: each metric that a panel shows is one that a run logs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mortal_runs import finish, home, imported
from wandb_server import offline_records, online, read_back, server

from sparsebench.dashboard.layout import spec, workspace

SCRIPT = Path(__file__).parents[1] / "scripts" / "wandb_dashboard.py"


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """What a run leaves in W&B."""
    imported()
    run, _ = finish(home(tmp_path_factory.mktemp("run")), "logger=wandb", WANDB_MODE="offline")
    (path,) = offline_records(run)
    return read_back(path)


def panels(built):
    return [p for s in built["section"]["panelBankConfig"]["sections"] for p in s["panels"]]


def test_curves_show_what_runs_log(logged):
    rows = set(logged["rows"][0])
    curves = [p["config"] for p in panels(spec(workspace("us", "p"))) if "Line" in p["viewType"]]
    assert {(c["xAxis"], *c["metrics"]) for c in curves} >= {
        ("epoch", "validation/accuracy"), ("flops/training_relative", "validation/accuracy")
    }  # fmt: skip
    for curve in curves:
        assert {curve["xAxis"], *curve["metrics"]} <= rows
    (layers,) = [c["metricRegex"] for c in curves if "metricRegex" in c]
    shown = {name for name in rows if re.fullmatch(layers, name)}
    assert shown == {"density/fc1/weight", "density/fc2/weight"}


def test_points_and_bars_show_what_summaries_have(logged):
    shown = [p for p in panels(spec(workspace("us", "p"))) if "Line" not in p["viewType"]]
    points = [(p["config"]["xAxis"], p["config"]["yAxis"]) for p in shown
              if p["viewType"] == "Scatter Plot"]  # fmt: skip
    assert {x for x, y in points if y == "summary:test/accuracy"} == {
        "summary:sparsity", "summary:flops/training_relative", "summary:flops/inference_relative",
        "summary:nonzeros",
    }  # fmt: skip
    bars = [p["config"]["metrics"] for p in shown if p["viewType"] == "Bar Chart"]
    assert len(points) + len(bars) == len(shown)
    names = {name.removeprefix("summary:") for pair in (*points, *bars) for name in pair}
    assert names <= logged["summary"].keys()
    assert all(isinstance(logged["summary"][name], int | float) for name in names)


def test_seeds_are_one_line_and_a_table_is_a_group(logged):
    (runset,) = spec(workspace("us", "p", "cifar"))["section"]["runSets"]
    groups = [key["name"].replace(".value", "") for key in runset["grouping"]]
    assert groups == ["method.name", "cell"]
    assert "name" in logged["config"]["method"]
    assert "cell" in logged["config"]
    assert '"cifar"' in json.dumps(runset["filters"])
    assert "cifar" not in json.dumps(spec(workspace("us", "p")))


def call(*words, **env):
    return subprocess.run([sys.executable, SCRIPT, *words], text=True, capture_output=True,
                          timeout=60, env={"HOME": "/nonexistent", **env})  # fmt: skip


def test_the_script_prints_the_spec_or_says_what_it_needs():
    told = call("--entity", "us", "--project", "p", "--table", "cifar", "--dry-run")
    assert told.returncode == 0, told.stderr
    printed = json.loads(told.stdout)
    assert (printed["entity"], printed["project"]) == ("us", "p")
    assert printed["name"] == "sparsebench: cifar"
    assert len(panels(printed)) == len(panels(spec(workspace("us", "p"))))
    told = call("--entity", "us")
    assert told.returncode == 2
    assert told.stderr == "wandb_dashboard: no W&B account is known: 'wandb login', or --dry-run\n"


def test_the_script_saves_the_view_in_the_project():
    with server() as wandb:
        told = call("--entity", "us", "--project", "p", **online(wandb.url))
        assert told.returncode == 0, told.stderr
        assert told.stdout.startswith(f"{wandb.url}/us/p?nw=")
        (view,) = wandb.views
    assert (view["entityName"], view["projectName"]) == ("us", "p")
    sent = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    built = spec(workspace("us", "p"))["section"]["panelBankConfig"]["sections"]
    assert [s["name"] for s in sent] == [s["name"] for s in built]


def test_a_server_that_refuses_is_told_in_a_line():
    with server() as wandb:
        wandb.views = None  # answers what is no answer
        told = call("--entity", "us", **online(wandb.url))
    assert told.returncode == 1
    assert told.stderr.splitlines()[-1].startswith("wandb_dashboard: W&B did not take it: ")
