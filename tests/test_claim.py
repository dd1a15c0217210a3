"""Claim files: one owner at a time, whatever dies, on this node or another."""

import json
import os
import random
import signal
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from sparsebench import claim
from sparsebench.claim import Claimed, Lost, hold, living_owner, owner_of


def names(folder):
    return sorted(os.listdir(folder))


def forked(action):
    """A process that does something and ends; its id."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return pid


def dead_claim(folder, number=1, **changed):
    """The claim of a process that was killed while it had the run."""
    ready, said = os.pipe()

    def die():
        with hold(folder):
            os.write(said, b".")
            os.kill(os.getpid(), signal.SIGKILL)

    pid = forked(die)
    os.read(ready, 1)
    os.waitpid(pid, 0)
    path = folder / f".owner-{number}"
    if changed:
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    return path


def test_held_released_and_held_again(tmp_path):
    run = tmp_path / "a" / "run"
    with hold(run) as path:
        assert path == run / ".owner-1"
        owner = living_owner(run)
        assert (owner.pid, owner.host) == (os.getpid(), os.uname().nodename)
        assert str(owner) == f"process {os.getpid()} on {os.uname().nodename}"
        with pytest.raises(Claimed, match=f"process {os.getpid()} on"), hold(run, wait=False):
            pass
    assert living_owner(run) is None
    assert owner_of(run) is None
    assert path.read_bytes() == b""
    with hold(run, wait=False) as path:
        assert path == run / ".owner-2"
    assert names(run) == [".owner-2"]


def test_released_after_a_fault(tmp_path):
    with pytest.raises(ZeroDivisionError), hold(tmp_path):
        raise ZeroDivisionError
    assert owner_of(tmp_path) is None


def test_nobody_has_a_folder_that_is_not_there(tmp_path):
    assert owner_of(tmp_path / "none") is None
    assert living_owner(tmp_path / "none") is None


def test_of_a_dead_process_on_this_node_it_is_free_at_once(tmp_path):
    dead_claim(tmp_path)
    assert owner_of(tmp_path) is not None
    assert living_owner(tmp_path) is None
    with hold(tmp_path, wait=False) as path:
        assert path.name == ".owner-2"
        assert names(tmp_path) == [".owner-2"]  # the dead one's was removed


def test_a_zombie_is_dead(tmp_path):
    kept = hold(tmp_path)  # not collected, which would release it
    pid = forked(kept.__enter__)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # it has ended and is not yet buried
    assert owner_of(tmp_path).pid == pid
    assert living_owner(tmp_path) is None
    os.waitpid(pid, 0)


def test_another_process_with_the_id_of_a_dead_one_is_not_it(tmp_path):
    path = dead_claim(tmp_path, pid=os.getpid())
    assert living_owner(tmp_path) is None
    started = claim._started(os.getpid())
    path.write_text(json.dumps({**json.loads(path.read_text()), "started": started}))
    assert living_owner(tmp_path) is not None


def test_without_proc_a_process_is_told_by_its_id(tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "_started", lambda pid: "")
    dead_claim(tmp_path)
    assert living_owner(tmp_path) is None
    with hold(tmp_path, wait=False):
        assert living_owner(tmp_path).started == ""


@pytest.mark.parametrize(("age", "alive"), [(0, True), (110, True), (130, False)])
def test_on_another_node_the_last_beat_tells(tmp_path, age, alive):
    path = dead_claim(tmp_path, place="node7 since noon", host="node7")
    then = time.time() - age
    os.utime(path, (then, then))
    assert (living_owner(tmp_path) is not None) == alive
    if alive:
        with pytest.raises(Claimed, match="on node7"), hold(tmp_path, wait=False):
            pass
    else:
        with hold(tmp_path, wait=False) as path:
            assert path.name == ".owner-2"
    assert not list(tmp_path.glob("*.tmp"))


def test_the_clock_is_the_file_systems(tmp_path, monkeypatch):
    dead_claim(tmp_path, place="node7 since noon")
    monkeypatch.setattr(time, "time", lambda: 4e9)  # our own is decades ahead
    assert living_owner(tmp_path) is not None
    probe = tmp_path / "probe"
    probe.touch()
    monkeypatch.setattr(claim, "_now", lambda folder: probe.stat().st_mtime + 121)
    assert living_owner(tmp_path) is None


def test_a_claim_that_cannot_be_read_counts_by_its_beat(tmp_path):
    path = tmp_path / ".owner-3"
    path.write_text('{"pid": 1, "of": "another version"}')
    assert living_owner(tmp_path) is not None
    os.utime(path, (0, 0))
    with hold(tmp_path, wait=False) as path:
        assert path.name == ".owner-4"


def test_the_owner_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "BEAT", 0.01)
    before = threading.active_count()
    with hold(tmp_path) as path:
        os.utime(path, (0, 0))
        while path.stat().st_mtime == 0:
            time.sleep(0.01)
    assert threading.active_count() == before


def test_who_was_thought_dead_stops_at_its_next_beat(tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "BEAT", 0.01)
    reached = []
    with pytest.raises(Lost, match="process 7 on node7"), hold(tmp_path):  # noqa: PT012 - one end
        other = replace(owner_of(tmp_path), pid=7, host="node7", token="x")
        (tmp_path / ".owner-2").write_text(json.dumps(asdict(other)))
        try:
            while True:
                time.sleep(0.01)
        except Exception:  # what a library would catch
            reached.append("caught")
    assert reached == []
    assert owner_of(tmp_path) == other  # what it leaves is the other's


def test_a_folder_that_is_removed_is_nobody_elses(tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "BEAT", 0.01)
    run = tmp_path / "run"
    with hold(run) as path:
        path.unlink()
        run.rmdir()
        time.sleep(0.1)
    assert not run.exists()


def test_who_acts_on_what_is_long_past_gets_nothing(tmp_path):
    """A taker that saw nothing, or a dead owner, and went to sleep before it made its claim."""
    dead_claim(tmp_path)
    assert claim._make(tmp_path, 1) is None  # the number is taken
    for _ in range(3):
        with hold(tmp_path):
            pass
    assert names(tmp_path) == [".owner-4"]
    for number in (1, 2, 3, 4):  # numbers 1 to 3 could be linked again
        assert claim._make(tmp_path, number) is None
    assert names(tmp_path) == [".owner-4"]
    with hold(tmp_path):
        assert claim._make(tmp_path, 2) is None
        assert living_owner(tmp_path).pid == os.getpid()
        assert names(tmp_path) == [".owner-5"]


def test_a_folder_that_vanishes_under_a_claim(tmp_path, monkeypatch):
    run, real, gone = tmp_path / "run", os.link, []

    def vanish(new, path):
        if not gone:
            gone.append(new.unlink())
            run.rmdir()
        return real(new, path)

    monkeypatch.setattr(os, "link", vanish)
    with hold(run):
        assert names(run) == [".owner-1"]


def test_an_answer_that_got_lost(tmp_path, monkeypatch):
    def link(new, path, real=os.link):
        real(new, path)
        raise FileExistsError  # NFS asked twice

    monkeypatch.setattr(os, "link", link)
    with hold(tmp_path, wait=False) as path:
        assert path.name == ".owner-1"


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def link(new, path):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    dead_claim(tmp_path)
    with hold(tmp_path, wait=False):
        assert living_owner(tmp_path).pid == os.getpid()
        assert claim._make(tmp_path, 2) is None
    assert names(tmp_path) == [".owner-2"]


def test_many_takers_that_are_killed_are_never_two_inside(tmp_path):
    """Eight processes want the run again and again, and are killed at random inside and out.

    ``inside`` names who is there; only a dead one may be found in it.
    """
    run, inside, log = tmp_path / "run", tmp_path / "inside", tmp_path / "log"
    claim.PERIOD, period = 0.001, claim.PERIOD

    def visit(number):
        rng = random.Random(number)
        threading.Thread(target=_kill_after, args=(rng.uniform(0.05, 0.6),), daemon=True).start()
        while True:
            with hold(run):
                found = inside.read_text() if inside.exists() else ""
                if found and claim._running(*found.split()):
                    log.write_text(f"{found} was inside")
                inside.write_text(f"{os.getpid()} {claim._started(os.getpid())}")
                time.sleep(rng.choice([0, 0.001]))
                with log.with_name(f"count-{os.getpid()}").open("a") as file:
                    file.write(".")
                inside.unlink()

    try:
        for wave in range(4):
            pids = [forked(lambda n=8 * wave + i: visit(n)) for i in range(8)]
            codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
            assert codes == [-signal.SIGKILL] * 8
    finally:
        claim.PERIOD = period
    assert not log.exists(), log.read_text()
    visits = sum(path.stat().st_size for path in tmp_path.glob("count-*"))
    assert visits > 32
    with hold(run, wait=False):  # nobody is left who has it
        assert len([name for name in names(run) if name.startswith(".owner-")]) == 1


def _kill_after(seconds):
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_refused_run_removes_its_folders_and_lets_the_waiting_one_in(tmp_path):
    from sparsebench.errors import UserError
    from sparsebench.run import _claim

    run = tmp_path / "runs" / "run"
    with pytest.raises(UserError), _claim(run, wait=True):  # noqa: PT012 - what is inside is looked at
        (run / "config.yaml").write_text("")
        (run / "tensorboard").mkdir()
        (run / "tensorboard" / "events").write_text("")
        raise UserError("no")
    assert names(tmp_path) == []
    run.mkdir(parents=True)
    with pytest.raises(UserError), _claim(run, wait=True):
        raise UserError("no")
    assert names(run) == [".owner-1"]  # the folder was there before


def test_a_folder_that_cannot_be_written_to(tmp_path):
    from sparsebench.errors import UserError
    from sparsebench.run import _claim

    Path(tmp_path / "runs").write_text("a file")
    run, said = tmp_path / "runs" / "run", "runs=.*: can't be written to"
    with pytest.raises(UserError, match=said), _claim(run, wait=True):
        pass
