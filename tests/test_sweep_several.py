"""Several sweeps of one table at once, the order of runs, what they cost, and their cores."""

import contextlib
import json
import os
import signal
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from mortal_runs import Child, imported

from sparsebench import claim
from sparsebench.claim import hold, living_owner
from sparsebench.cli import main
from sparsebench.errors import Interrupted, UserError
from sparsebench.sweep import cores, launch
from sparsebench.sweep.cells import Cells, Run
from sparsebench.sweep.job import Job, Report
from sparsebench.sweep.launch import Launch
from sparsebench.sweep.order import Costs, estimate, measured, ordered, seconds_of, spent
from sparsebench.sweep.watch import Watch

#: A network that writes down each time it is trained, and can stop or wait for a file.
NET = """
import os, signal, time
from torch import nn

class Net(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.mode, self.fresh = mode, True
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x):
        if self.training and self.fresh and len(x) > 2:
            self.fresh = False
            with open(os.environ["TRAINED"], "a") as file:
                print(self.mode, os.environ.get("WHO"), sorted(os.sched_getaffinity(0)), file=file)
            if self.mode == os.environ.get("STOP_AT"):
                os.kill(os.getpid(), signal.SIGSTOP)
        return self.body(x)

def net(input_shape=None, num_classes=10, width=1.0, mode="fine"):
    return Net(mode)
"""
WORDS = [
    "model=custom", "model._target_=several.net", "allow=[several]", "method=static", "epochs=1",
    "plots=false", "data.validation=0", "batch_size=256", "trainer.threads=1",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _imported():
    imported()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # for workers
    monkeypatch.setenv("TRAINED", str(tmp_path / "trained"))
    sys.modules.pop("several", None)
    Path("several.py").write_text(NET)
    return tmp_path


def start(*words, who, **env):
    place = Path(who).resolve()
    place.mkdir()
    return Child(place, "-m", *WORDS, f"runs={place.parent}/runs", *words, WHO=who, **env)


def modes(*names):
    return f"+model.args.mode={','.join(names)}"


def trained():
    """By mode, who trained it."""
    found = {}
    for line in Path("trained").read_text().splitlines() if Path("trained").exists() else []:
        mode, who, *_ = line.split()
        found.setdefault(mode, []).append(who)
    return found


def wait_for(found, seconds=60):
    until = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < until, [path.read_text() for path in Path().glob("*/stderr")]
        time.sleep(0.02)


def status_of(mode):
    for path in Path("runs").glob("*/result.json"):
        content = json.loads(path.read_text())
        if content["config"]["model"]["args"]["mode"] == mode:
            return content["status"]
    return None


@pytest.fixture
def held(folder):
    """A sweep that is stopped inside its first run ``a``, and one that has done ``b``."""
    first = start(modes("a", "b"), who="first", STOP_AT="a")
    assert first.wait(os.WUNTRACED) == -signal.SIGSTOP
    second = start(modes("a", "b"), who="second")
    wait_for(lambda: second.err.exists() and "elsewhere" in second.err.read_text())
    yield first, second
    for child in (first, second):
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)


def test_what_another_sweep_does_is_neither_waited_for_nor_done_twice(held):
    first, second = held
    assert trained() == {"a": ["first"], "b": ["second"]}
    said = second.err.read_text()
    assert f"a, seed 0: elsewhere (process {first.pid} on {os.uname().nodename})" in said
    assert "[1/2] b, seed 0: finished" in said
    os.kill(first.pid, signal.SIGCONT)
    assert (first.wait(), second.wait()) == (0, 0)
    assert trained() == {"a": ["first"], "b": ["second"]}
    assert "[2/2] a, seed 0: finished" in second.err.read_text()


def test_what_a_dead_sweep_leaves_is_done_by_the_other(held):
    first, second = held
    os.kill(first.pid, signal.SIGKILL)
    assert second.wait() == 0
    assert trained() == {"a": ["first", "second"], "b": ["second"]}
    assert status_of("a") == "finished"


def test_ctrl_c_while_others_are_waited_for_leaves_at_once(held):
    _, second = held
    os.kill(second.pid, signal.SIGINT)
    assert second.wait() == 130
    said = second.err.read_text()
    assert "sparsebench: 1 of 2 runs are done" in said
    assert "Traceback" not in said
    assert trained() == {"a": ["first"], "b": ["second"]}


@pytest.mark.parametrize("sweep", [True, False])
def test_a_run_that_was_taken_over_in_its_sleep_stops_and_waits(folder, monkeypatch, sweep):
    monkeypatch.setattr(claim, "BEAT", 0.05)
    where = [f"runs={folder}/runs", modes("a")]
    words = ["-m", *WORDS, *where] if sweep else [*WORDS, *where]
    (folder / "one").mkdir()
    child = Child(folder / "one", *words, "epochs=400", WHO="one", STOP_AT="a")
    assert child.wait(os.WUNTRACED) == -signal.SIGSTOP
    (run,) = Path("runs").iterdir()
    other = replace(claim.owner_of(run), pid=7, host="node7", place="node7 since noon", token="x")
    (run / ".owner-2").write_text(json.dumps(asdict(other)))
    os.kill(child.pid, signal.SIGCONT)
    said = "elsewhere (process 7 on node7)" if sweep else "(process 7 on node7); waiting"
    wait_for(lambda: said in child.err.read_text())
    assert f"{run.resolve()} was taken over by process 7 on node7" in child.err.read_text()
    assert not (run / "result.json").exists()
    assert trained() == {"a": ["one"]}
    (run / ".owner-2").write_text("")  # the other one was stopped
    assert child.wait(os.WUNTRACED) == -signal.SIGSTOP  # in its training again
    assert claim.owner_of(run).pid == child.pid
    os.kill(child.pid, signal.SIGCONT)
    assert child.wait() == 0
    assert trained() == {"a": ["one", "one"]}
    assert status_of("a") == "finished"


def test_three_sweeps_at_once_train_each_run_once_on_cores_of_their_own(folder):
    names = [f"m{i}" for i in range(6)]
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    parallel = start(modes(*names), *joblib, who="parallel")
    wait_for(trained)  # its workers take seconds to begin
    sweeps = [parallel, *(start(modes(*names), who=f"serial{n}") for n in range(2))]
    assert [sweep.wait() for sweep in sweeps] == [0, 0, 0], parallel.err.read_text()
    assert {mode: len(by) for mode, by in trained().items()} == dict.fromkeys(names, 1)
    assert all(status_of(name) == "finished" for name in names)
    lines = [line.split(" ", 2) for line in Path("trained").read_text().splitlines()]
    mine = sorted(os.sched_getaffinity(0))
    half = len(mine) // 2
    allowed = [mine[:half], mine[half : 2 * half]] if half else [mine]
    assert {text for _, who, text in lines if who == "parallel"} <= set(map(str, allowed))
    assert {text for _, who, text in lines if who != "parallel"} <= {str(mine)}


# --- without processes ---------------------------------------------------------------------------


def a_run(name, folder=Path(), epochs=1, samples=None):
    return Run(name, folder / name, (name,), name, epochs, True, samples)


class Returns:
    """A launcher that gives reports by turn, and does something beforehand."""

    def __init__(self, *turns):
        self.turns, self.asked = list(turns), []

    def launch(self, jobs, initial_job_idx):
        self.asked.append([overrides[0] for overrides in jobs])
        turn = self.turns.pop(0)
        values = turn() if callable(turn) else turn
        return [type("Return", (), {"_return_value": Report(*value)}) for value in values]


def test_a_run_that_is_free_again_and_again_elsewhere_is_asked_for_until_it_ends(tmp_path):
    launcher = Returns([("elsewhere",), ("finished",)], [("elsewhere",)], [("diverged", "inf")])
    job = Launch(launcher, tmp_path)
    job.all([a_run("a", tmp_path), a_run("b", tmp_path)])
    assert launcher.asked == [["a", "b"], ["a"], ["a"]]
    assert job.reports == {"a": Report("diverged", "inf"), "b": Report("finished")}
    assert not job.elsewhere


def test_the_failure_of_a_run_elsewhere_is_noted_and_not_tried_again(tmp_path, monkeypatch):
    from sparsebench.result import write_result

    launcher = Returns([("elsewhere",)])
    job, run = Launch(launcher, tmp_path), a_run("a", tmp_path)
    with hold(run.folder):

        def sleep(seconds):
            assert living_owner(run.folder)
            write_result(
                run.folder, identity="a", status="failed", config={}, environment={}, metrics={},
                error="no luck",
            )  # fmt: skip

        monkeypatch.setattr(launch.time, "sleep", sleep)
        job.all([run])
    assert job.reports == {"a": Report("failed", "no luck")}


def test_a_signal_while_waiting_ends_it(tmp_path, monkeypatch):
    run = a_run("a", tmp_path)
    monkeypatch.setattr(launch.time, "sleep", lambda s: os.kill(os.getpid(), signal.SIGTERM))
    with hold(run.folder), pytest.raises(Interrupted):
        Launch(Returns([("elsewhere",)]), tmp_path).all([run])


def test_a_job_on_a_node_without_the_sweeps_folder(tmp_path, monkeypatch):
    from sparsebench.sweep import job as module

    def interrupted(cfg):
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(module, "report_of", interrupted)
    before = signal.getsignal(signal.SIGINT)
    try:
        report = Job(os.getpid(), tmp_path / "gone")(
            type("Cfg", (), {"trainer": type("T", (), {"threads": None})})
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert report == Report("interrupted", "interrupted by SIGTERM")


# --- order and costs -----------------------------------------------------------------------------


def test_orders():
    runs = [a_run(name) for name in "abcd"]
    costs = {"a": 2.0, "b": 1.0, "c": 2.0, "d": 3.0}

    def names(order):
        return "".join(run.identity for run in ordered(runs, order, costs))

    assert [names(order) for order in ("table", "shortest", "longest")] == ["abcd", "bacd", "dacb"]
    with pytest.raises(UserError, match=r"hydra.sweeper.order=shortes: one of .*'shortest'\?"):
        names("shortes")


def test_costs_are_measured_or_by_samples_and_epochs():
    runs = [
        a_run("a0", epochs=2, samples=100), a_run("a1", epochs=2, samples=100),
        a_run("a2", epochs=2, samples=100), a_run("b0", epochs=4, samples=50),
        a_run("b1", epochs=1, samples=None),
    ]  # fmt: skip
    of = {(0, 0, i): f"a{i}" for i in range(3)} | {(1, 0, i): f"b{i}" for i in range(2)}
    cells = Cells({run.identity: run for run in runs}, of)
    unknown = estimate(cells, {})
    assert unknown == Costs({"a0": 200, "a1": 200, "a2": 200, "b0": 200, "b1": 1}, False)
    known = estimate(cells, {"a0": 10.0, "a1": 20.0})
    assert known.measured
    assert known.of == {
        "a0": 10, "a1": 20, "a2": 15,  # the mean of its cell
        "b0": pytest.approx(200 * 30 / 400), "b1": pytest.approx(30 / 400),
    }  # fmt: skip
    assert known.total(runs[1:3]) == 35


def test_seconds_are_read_off_a_few_finished_seeds(tmp_path):
    from sparsebench.result import write_result

    runs = [a_run(f"a{i}", tmp_path) for i in range(6)]
    for number, run in enumerate(runs):
        run.folder.mkdir()
        metrics = {"seconds/setup": 1, "seconds/fit": number, "seconds/testing": None}
        status = "diverged" if number == 1 else "finished"
        write_result(
            run.folder, identity="", status=status, config={}, environment={}, metrics=metrics
        )
    cells = Cells(
        {run.identity: run for run in runs},
        {(0, 0, i): f"a{i}" for i in range(6)},
        {f"a{i}" for i in range(5)},
    )
    assert measured(cells) == {"a0": 1.0, "a2": 3.0}
    assert seconds_of(None) == 0


def test_the_passes_of_pruning_are_part_of_it():
    metrics = {"setup": 1, "pruning": 20, "calibration_forward": 15, "recovery": 300, "testing": 4}
    assert spent({f"seconds/{what}": value for what, value in metrics.items()}) == 325


@pytest.mark.parametrize(
    ("ended", "known", "at_once", "said"),
    [
        ("", False, 1, ""),
        ("", True, 1, ", 1:10 min left"),
        ("", True, 2, ", 35 s left"),
        ("", True, None, ""),
        ("a", True, 2, ", 18 s left"),  # 10 s of cost took 3 s: the other 60 take 18
        ("ab", False, 1, ", 4 s left"),  # 30 took 3: 40 are left
        ("abc", True, 1, ""),
    ],
)
def test_time_left_goes_by_costs(tmp_path, monkeypatch, ended, known, at_once, said):
    runs, job = [a_run(name, tmp_path) for name in "abc"], Launch(Returns(), tmp_path)
    costs = Costs({"a": 10.0, "b": 20.0, "c": 40.0}, known)
    clock = iter([100.0, 103.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    watch = Watch(job, runs, 2, costs, at_once=at_once, quiet=True)
    watch.pending = [run for run in runs if run.identity not in ended]
    assert watch._left() == said


def test_the_order_of_a_sweep(folder, capsys):
    words = ["-m", *WORDS, "model.args.mode=fine".replace("model", "+model", 1)]
    for order, first in (("longest", "3"), ("shortest", "1"), ("table", "2")):
        with pytest.raises(SystemExit) as done:
            main([*words, "epochs=2,3,1", f"hydra.sweeper.order={order}", f"runs={order}"])
        assert done.value.code == 0
        assert f"[1/3] {first}, seed 0: finished" in capsys.readouterr().err
    with pytest.raises(SystemExit) as done:
        main([*words, "epochs=2,3,1", "hydra.sweeper.order=quickest", "runs=none"])
    assert done.value.code == 2
    assert "hydra.sweeper.order=quickest: one of table, shortest" in capsys.readouterr().err
    assert not Path("none").exists()


# --- cores ---------------------------------------------------------------------------------------


@pytest.fixture
def affinity(monkeypatch):
    """Eight cores, and what was asked for."""
    now = [set(range(8))]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: now[-1])
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, mask: now.append(set(mask)))
    monkeypatch.setattr(cores, "_seat", None)
    return now


def test_workers_take_free_slots_and_leave_them(tmp_path, affinity, monkeypatch):
    workers, later = tmp_path / "a", tmp_path / "b"
    for path in (workers, later):
        path.mkdir()
    cores.divide(workers, 3)
    cores.settle(workers, 2)
    assert affinity[-1] == {0, 1}
    cores.settle(workers, 2)
    assert len(affinity) == 2  # it sits already
    first = cores._seat
    affinity.append(set(range(8)))
    monkeypatch.setattr(cores, "_seat", None)  # as another process would
    cores.settle(workers, None)
    assert affinity[-1] == {2, 3}
    os.close(first.lock)  # as the end of the first one does
    affinity.append(set(range(8)))
    monkeypatch.setattr(cores, "_seat", None)
    cores.settle(workers, None)
    assert affinity[-1] == {0, 1}
    cores.settle(later, None)  # a sweep without slots, in the same process
    assert affinity[-1] == set(range(8))
    assert cores._seat is None


def test_no_cores_are_given_where_they_do_not_suffice(tmp_path, affinity):
    for number, (at_once, threads) in enumerate([(9, 1), (1, 1), (4, 3)]):
        workers = tmp_path / str(number)
        workers.mkdir()
        cores.divide(workers, at_once)
        cores.settle(workers, threads)
    assert affinity == [set(range(8))]
