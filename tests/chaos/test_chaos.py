"""Sweeps killed by SIGKILL again and again end with the table of one that never was.

A process group is killed twenty times at random moments: in a training, in a checkpoint, between
two runs, while the table is written. The seed of the moments is printed and can be given
(``CHAOS=seed``). Then the sweep is let through.

What is compared: the metrics of each run but for ``seconds/`` and ``memory/``, the final
weights and masks by their hashes, and the bytes of all files of the table. A table tells when,
where and how fast its runs were made, which can't be the same twice: before it is made once more,
for comparison, these inputs (environment, seconds, memory, dates of results) are set to the same
values in both places. Nothing else is touched.
"""

import json
import os
import random
import signal
import time

import pytest
from mortal_runs import Child, imported

TABLE = """
name: chaos
title: Chaos
scales: {tiny: {setup: "MLP, digits, 4 epochs"}}
overrides:
  - model=mlp
  - data=digits
  - epochs=4
  - batch_size=32
  - method.every=5it
  - trainer.threads=1
  - trainer.checkpoint_every=0.1
  - plots=false
seeds: 2
rows: {key: method, values: [dense, rigl, gmp]}
columns: {key: sparsity, values: [0.8, 0.95]}
metric:
  - {key: test/accuracy, label: Accuracy, format: .2f, factor: 100, better: max}
  - {key: nonzeros, label: Non-zeros, format: ",.0f", summary: range}
picture: {x: sparsity, y: test/accuracy, series: method}
"""
RUNS = 10  # dense is the same at both sparsities
KILLS = 20
FILES = ["table.md", "table.tex", "table.csv", "table.png", "table.svg"]
BASIC = []
JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


class Group(Child):
    """The command line as the leader of a process group."""

    def _run(self, folder, words, limit, env):
        os.setsid()
        super()._run(folder, words, limit, env)

    def running(self):
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def kill(self):
        """End the whole group as the out-of-memory killer or a power cut would; whether it ran."""
        running = self.running()
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:  # it is not yet the leader of a group
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return running


@pytest.fixture(scope="module", autouse=True)
def _imported():
    imported()
    import sparsebench.sweep.picture
    import sparsebench.sweep.report  # noqa: F401 - as above


def home(folder):
    (folder / "own" / "table").mkdir(parents=True)
    (folder / "own" / "table" / "chaos.yaml").write_text(TABLE)
    return folder


def sweep(folder, *words):
    return Group(folder, "-m", "--config-dir", "own", "+table=chaos", *words)


def let_through(folder, *words):
    child = sweep(folder, *words)
    assert child.wait() == 0, child.err.read_text()


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/result.json")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The sweep that was never killed: its folder, and how long it took."""
    folder = home(tmp_path_factory.mktemp("whole"))
    begin = time.monotonic()
    let_through(folder)
    return folder, time.monotonic() - begin


@pytest.fixture
def moments(request):
    """Random moments; the seed is shown if the test fails, and always with -s."""
    seed = int(os.environ.get("CHAOS", random.SystemRandom().randrange(10**6)))
    print(f"{request.node.name}: CHAOS={seed}")
    return random.Random(seed)


def figures(folder):
    """What each run came to, but for what the clock and the machine say."""
    found = {}
    for path in sorted(folder.glob("runs/*/result.json")):
        content = json.loads(path.read_text())
        metrics = content["metrics"]
        kept = {k: v for k, v in metrics.items() if not k.startswith(("seconds/", "memory/"))}
        found[path.parent.name] = (content["status"], content["layers"], kept)
    return found


def table(folder):
    """The bytes of the table's files, made once more with the same clock and machine for all."""
    for path in folder.glob("runs/*/result.json"):
        content = json.loads(path.read_text())
        content["environment"] = {"python": "3", "machine": "any", "cores": 2, "threads": 1}
        for key in content["metrics"]:
            if key.startswith(("seconds/", "memory/")):
                content["metrics"][key] = 1.0
        path.write_text(json.dumps(content))
        os.utime(path, (1e9, 1e9))
    let_through(folder)
    made = folder / "results" / "chaos" / "tiny"
    return {name: (made / name).read_bytes() for name in FILES}


def assert_same(folder, whole):
    assert len(figures(whole)) == RUNS
    assert figures(folder) == figures(whole)
    leftovers = [*folder.glob("runs/*/.*.tmp"), *folder.glob("results/chaos/tiny/.*.tmp")]
    assert not [path for path in leftovers if path.parent.parent.name == "runs"]
    assert table(folder) == table(whole)


def watch_over(folder, known):
    """What has ended once is never done again."""
    now = stamps(folder)
    assert {path: now.get(path) for path in known} == known
    return now


def live(folder, child, moments, span):
    """Let a sweep go on for a random while: up to its next result or not, and then some seconds."""
    wanted = min(len(stamps(folder)) + moments.choice((0, 0, 1)), RUNS)
    while child.running() and len(stamps(folder)) < wanted:
        time.sleep(0.01)
    time.sleep(moments.uniform(0, span))


# joblib's workers take seconds to begin each time
@pytest.mark.parametrize(("words", "deaths"), [(BASIC, KILLS), (JOBLIB, 10)], ids=["one", "two"])
def test_a_sweep_that_is_killed_again_and_again(tmp_path, whole, moments, words, deaths):
    folder, known, kills, done = home(tmp_path), {}, 0, []
    while kills < deaths:
        child = sweep(folder, *words)
        live(folder, child, moments, span=whole[1] / RUNS)
        kills += child.kill()
        known = watch_over(folder, known)
        done.append(len(known))
    print("done after each kill:", *done)
    assert any(0 < number < RUNS for number in done)  # not all kills came too soon or too late
    let_through(folder, *words)
    watch_over(folder, known)
    assert_same(folder, whole[0])


def test_two_sweeps_side_by_side_that_are_killed_twenty_times(tmp_path, whole, moments):
    home(tmp_path)
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:  # each with a screen of its own
        place.mkdir()
        for name in ("own", "runs", "results"):
            (tmp_path / name).mkdir(exist_ok=True)
            (place / name).symlink_to(tmp_path / name)
    running, known, done, kills = [sweep(place) for place in places], {}, [], 0
    while kills < KILLS:
        number = moments.randrange(2)
        live(tmp_path, running[number], moments, span=whole[1] / RUNS)
        kills += running[number].kill()
        known = watch_over(tmp_path, known)
        done.append(len(known))
        running[number] = sweep(places[number])
    print("done after each kill:", *done)
    assert any(0 < number < RUNS for number in done)
    assert [child.wait() for child in running] == [0, 0], [c.err.read_text() for c in running]
    watch_over(tmp_path, known)
    assert_same(tmp_path, whole[0])
