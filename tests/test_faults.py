"""F1, F2, F3, F7, F11: processes that are killed, stopped or not alone.

Each ends bitwise as one that nobody disturbed.
"""

import os
import signal
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mortal_runs import (
    OFTEN,
    RUN,
    Child,
    assert_same,
    die,
    finish,
    flip,
    home,
    imported,
    load,
    run_of,
)

from sparsebench.claim import living_owner, owner_of


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
    assert owner_of(run) is None
    assert_same(run, whole)


def test_f7_a_dead_process_holds_nothing(place, whole):
    run = die(place, DIE_AT="15+0")
    assert owner_of(run).host == os.uname().nodename
    assert living_owner(run) is None
    _, lines = finish(place)
    assert lines == []
    assert_same(run, whole)


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
