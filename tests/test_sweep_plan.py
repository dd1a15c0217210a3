"""Plans: the names of thousands of cells without composing each, states, and what is left."""

import os
import signal
import subprocess
import sys

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from sparsebench.cli import main
from sparsebench.config.compose import compose
from sparsebench.config.paths import config_folder
from sparsebench.config.schema import register
from sparsebench.errors import UserError
from sparsebench.files import write_json
from sparsebench.result import write_result
from sparsebench.sweep import computing
from sparsebench.sweep.cells import Families, lay_out
from sparsebench.sweep.composing import GridComposer
from sparsebench.sweep.grid import free_grid, read_overrides
from sparsebench.sweep.plan import state


@pytest.fixture
def composer():
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        from hydra.types import RunMode

        master = loader.load_configuration("config", [], RunMode.MULTIRUN)
        yield GridComposer(loader, master)


def grid(*words):
    return free_grid(read_overrides(words), "", "rigl", 0)


GRIDS = [
    ["method=set,rigl,gmp", "sparsity=0.5,0.9,0", "seed=0,1,7", "epochs=40"],
    ["method.drop_fraction=0.1,0.3", "sparsity=0.5,0.25", "distribution=erk,uniform"],
    ["optimizer.lr=0.1,1", "method=dense,static", "sparsity=0.5,0.6", "data=digits,mnist1d"],
    ["epochs=30,40", "batch_size=64,128", "trainer.threads=1,2"],
    ["+model.args.width=1,2", "model.hidden=[10],[20,20]"],
    ["schedule.warmup=1ep,20it", "schedule=linear,cosine", "method.every=5it,7it"],
    ["task=prune_llm", "method=svd,cospadi", "method.compression=0.2,0.3", "eval.dense=false"],
]


@pytest.mark.parametrize("words", GRIDS)
def test_shared_composition_names_what_hydra_composes(words, composer):
    found = lay_out(grid(*words), composer)
    assert found.of == lay_out(grid(*words), compose).of
    assert {n: r.overrides for n, r in found.runs.items()} == {
        n: r.overrides for n, r in lay_out(grid(*words), compose).runs.items()
    }


@pytest.mark.parametrize("words", GRIDS)
def test_families_name_what_composing_names(words, composer):
    fast = lay_out(grid(*words), composer, Families(composer))
    slow = lay_out(grid(*words), composer)
    assert fast.of == slow.of
    assert fast.runs == slow.runs


def test_families_compose_one_cell_of_many(composer):
    composed = []

    def counting(overrides):
        composed.append(overrides)
        return composer(overrides)

    words = ["method.drop_fraction=0.1,0.2,0.3,0.4", "sparsity=0.5,0.6,0.7", "seed=0,1"]
    cells = lay_out(grid(*words), counting, Families(composer), running=False)
    assert len(cells.runs) == 24
    assert len(composed) == 1
    lay_out(grid(*words), counting, Families(composer))  # what is to be run is composed
    assert len(composed) == 1 + 12


def test_families_compose_what_is_not_done_only(composer, tmp_path):
    words = [f"runs={tmp_path}", "method.drop_fraction=0.1,0.2,0.3,0.4", "seed=0,1"]
    for run in list(lay_out(grid(*words), composer).runs.values())[:7]:
        run.folder.mkdir()
        write_result(
            run.folder, identity="x", status="finished", config={}, environment={}, metrics={}
        )
    composed = []

    def counting(overrides):
        composed.append(overrides)
        return composer(overrides)

    lay_out(grid(*words), counting, Families(composer))
    assert [o for o in composed[1] if "drop" in o] == ["method.drop_fraction=0.4"]
    assert len(composed) == 2


@pytest.mark.parametrize("word", ["sparsity=0.5,1.5", "method.drop_fraction=0.3,x"])
def test_families_refuse_what_a_sweep_refuses(word, composer):
    errors = []
    for families in (Families(composer), None):
        with pytest.raises(UserError) as caught:
            lay_out(grid(word, "epochs=40"), composer, families)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


def test_states(tmp_path, composer):
    cells = lay_out(grid(f"runs={tmp_path}", "seed=0,1,2,3,4,5"), composer)
    runs = list(cells.runs.values())
    for run, status in zip(runs, ("finished", "failed", "diverged"), strict=False):
        run.folder.mkdir()
        write_result(run.folder, identity="x", status=status, config={}, environment={}, metrics={})
    runs[3].folder.mkdir()
    (runs[3].folder / "last.ckpt").touch()
    runs[4].folder.mkdir()
    write_json(runs[4].folder / "config.yaml", {})
    cells = lay_out(grid(f"runs={tmp_path}", "seed=0,1,2,3,4,5"), composer)
    assert cells.done == {runs[0].identity: "finished", runs[2].identity: "diverged"}
    found = [state(run, cells.done.get(run.identity)) for run in runs]
    assert found == ["done", "failed", "diverged", "interrupted", "missing", "missing"]


def test_a_living_claim_is_running(tmp_path, composer):
    (run,) = lay_out(grid(f"runs={tmp_path}"), composer).runs.values()
    code = f"""
import time
from pathlib import Path
from sparsebench.claim import hold
with hold(Path({str(run.folder)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    assert state(run, None) == "running"
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert state(run, None) == "missing"


def test_plan_runs_nothing_and_imports_no_torch(tmp_path):
    code = (
        "import sys\nfrom sparsebench.cli import main\n"
        "try: main(sys.argv[1:])\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    )
    words = ["-m", "+table=quick", "table.plan=true", "table.seeds=2", "runs=r"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "100"},
        check=True,
    )
    assert "26 runs: 26 missing" in done.stdout
    assert "26 are left; no run is done yet" in done.stdout
    assert "GPU-hours" not in done.stdout
    assert done.stderr.strip() == "False"
    assert os.listdir(tmp_path) == []


def test_the_launcher_that_a_table_chose_takes_dials(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["-m", "+table=quick", "table.plan=true", "table.seeds=2", "hydra.launcher.n_jobs=1"])
    assert stopped.value.code == 0
    assert "26 runs: 26 missing" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["-m", "+table=quick", "table.plan=true", "hydra.launcher.n_job=1"])
    assert stopped.value.code == 2
    assert "'hydra.launcher.n_job'" in capsys.readouterr().err


def test_gpu_hours_are_three_dense_forwards_a_sample(composer):
    words = ["model=mlp", "model.hidden=[10]", "data=digits", "method=dense,rigl", "seed=0,1"]
    table = grid(*words, "epochs=40")
    cells = lay_out(table, composer)
    forward = 2 * (64 * 10 + 10 * 10)
    hours = computing.gpu_hours(table, cells, composer, list(cells.runs))
    samples = next(iter(cells.runs.values())).samples
    assert hours == pytest.approx(4 * 3 * forward * samples * 40 / 3e13 / 3600)
    some = list(cells.runs)[:1]
    assert computing.gpu_hours(table, cells, composer, some) == pytest.approx(hours / 4)
    assert computing.said(table, cells, composer, some) == ""


def test_a_paper_scale_says_its_cost(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["-m", "+table=imagenet", "table.plan=true", "table.where=method in [dense, rigl]"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    # 2 dense and RigL rows at two sparsities, 3 seeds: 1,281,167 images x 103 epochs x 3 forwards
    runs = 3 * (103 + 2 * 2 * 103 + 2 * 2 * 515)
    hours = 3 * 8178368512 * 1281167 * runs / 3e13 / 3600
    assert f"about {hours:,.0f} GPU-hours for 27 runs" in shown
