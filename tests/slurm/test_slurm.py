"""A sweep over SLURM ends with the table of a serial one, whatever befalls its jobs."""

import os
import subprocess

from slurm.cluster import (
    INTERRUPT,
    STEPS,
    assert_finished,
    fault,
    logs,
    queue,
    results,
    steps,
    sweep,
    until,
)

TWO = ["method=set"]  # of the four cells
NODE = os.uname().nodename.partition(".")[0]


def node(state):
    words = ["scontrol", "update", f"nodename={NODE}", f"state={state}", "reason=test"]
    done = subprocess.run(words)
    now = subprocess.run(["sinfo", "-hN", "-o", "%t"], capture_output=True, text=True).stdout
    # a node that answers comes back by itself, and can't be told to then
    assert done.returncode == 0 or (state == "resume" and "down" not in now), now


def test_one_job_killed_half_way(place, serial):
    fault(place, "17-kill")
    running = sweep(place)
    assert_finished(place, running, serial)
    assert running.said().count("ended without a result (FAILED); it is run again") == 1


def test_time_limit_and_preemption_checkpoint_and_requeue(place, serial):
    fault(place, "12-limit", "21-preempt")
    running = sweep(place)
    assert_finished(place, running, serial)
    assert "it is run again" not in running.said()  # the job itself went on
    assert steps(place) == STEPS  # from its checkpoint
    told = [line for line in logs(place).splitlines() if "is requeued and goes on" in line]
    assert sorted(line.split(";")[0] for line in told) == [
        "sparsebench: interrupted by SIGTERM at step 21",
        "sparsebench: interrupted by SIGUSR1 at step 12",
    ]


def test_a_node_that_dies(place, serial):
    fault(place, "5-stepd")
    running = sweep(place, PACE="0.1")
    until(lambda: steps(place) > 10)
    node("down")
    try:
        until(lambda: not [state for _, state in queue() if state == "RUNNING"])
        assert running.process.poll() is None
    finally:
        node("resume")
    assert_finished(place, running, serial)


def test_two_sweeps_at_once_train_each_cell_once(place, serial):
    first, second = sweep(place), sweep(place)
    assert_finished(place, first, serial)
    assert_finished(place, second, serial)
    assert steps(place) == STEPS


def test_ctrl_c_cancels_and_the_same_command_goes_on(place, serial):
    stopped = sweep(place, *TWO, PACE="0.3")
    until(lambda: steps(place) > 3)
    stopped.send(INTERRUPT)
    assert stopped.wait() == 130, stopped.said()
    assert queue() == []
    assert results(place) == {}
    assert list((place / "runs").glob("*/last.ckpt"))
    going_on = sweep(place, *TWO)
    assert going_on.wait() == 0, going_on.said()
    assert len(results(place)) == 2
    assert results(place).items() <= serial[0].items()
    assert steps(place) == STEPS // 2


def test_a_job_the_user_cancels_stays_cancelled(place):
    fault(place, "6-cancel")
    running = sweep(place, *TWO)
    assert running.wait() == 1
    assert running.said().count("killed: its job was cancelled") == 1
    assert len(results(place)) == 1
    assert "is not requeued" in logs(place)
