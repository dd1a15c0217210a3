"""Sweeps over SLURM without one: what is asked of it, and what is made of its answers.

``sbatch`` is a script that takes everything; the jobs it took are run here, in this process.
"""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from sparsebench.cli import main
from sparsebench.signals import goes_on, requeue, slurm_job
from sparsebench.sweep import slurm, slurm_cell, slurm_queue
from sparsebench.sweep.slurm import what_now

RUNS = ["method=static", "epochs=1", "plots=false", "batch_size=256", "quiet=true"]
SWEEP = ["-m", *RUNS, "seed=0,1", "hydra/launcher=slurm", "hydra.launcher.poll_s=0"]


def program(folder, name, text):
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder with the programs of a SLURM in ``bin``, and nothing of a real one."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/bin")
    for name in ("srun", "squeue", "scancel"):
        program(tmp_path, name, f'echo "{name} $*" >> asked')
    program(tmp_path, "scontrol", 'echo "scontrol $*" >> asked; echo "MaxArraySize = 1001"')
    program(
        tmp_path,
        "sbatch",
        'echo x >> submitted; cat "$1"; echo "Submitted batch job $(grep -c x submitted)"',
    )
    return tmp_path


class Cluster:
    """Answers as squeue would; a job that waits is run when one asks for the second time."""

    def __init__(self, monkeypatch, dying=()):
        self.ended, self.dying, self.calls = {}, list(dying), 0
        self.monkeypatch = monkeypatch

    def __call__(self):
        self.calls += 1
        waiting = [
            (path.parent, path.name.removesuffix("_submitted.pkl"))
            for path in sorted(Path("runs/slurm").glob("*/*_submitted.pkl"))
        ]
        for folder, job in waiting:
            if job not in self.ended:
                self.ended[job] = self.run(folder, job)
        return dict(self.ended)

    def run(self, folder, job):
        if self.dying:
            return self.dying.pop(0)
        array, _, task = job.partition("_")
        with self.monkeypatch.context() as patch:
            patch.setenv("SLURM_JOB_ID", array)
            if task:
                patch.setenv("SLURM_ARRAY_JOB_ID", array)
                patch.setenv("SLURM_ARRAY_TASK_ID", task)
            slurm_cell.main(folder.absolute())
        return "COMPLETED"


def sweep(monkeypatch, cluster, *words):
    monkeypatch.setattr(slurm, "states", cluster)
    with pytest.raises(SystemExit) as done:
        main([*SWEEP, *words])
    return done.value.code


def results():
    return [json.loads(p.read_text())["status"] for p in Path("runs").glob("*/result.json")]


def test_sweep_submits_one_array_and_collects(place, monkeypatch):
    assert sweep(monkeypatch, Cluster(monkeypatch)) == 0
    assert results() == ["finished"] * 2
    (script,) = place.glob("runs/slurm/*/1_submission.sh")
    assert (place / "submitted").read_text() == "x\n"
    assert "#SBATCH --array=0-1%2" in script.read_text().splitlines()
    assert not list(place.glob("runs/slurm/*/jobs.json"))
    assert sweep(monkeypatch, Cluster(monkeypatch)) == 0  # nothing is left to be submitted
    assert (place / "submitted").read_text() == "x\n"


def test_job_that_dies_is_submitted_again(place, monkeypatch, capsys):
    assert sweep(monkeypatch, Cluster(monkeypatch, ["NODE_FAIL"])) == 0
    assert results() == ["finished"] * 2
    assert "job 1_0 ended without a result (NODE_FAIL); it is run again" in capsys.readouterr().err
    assert (place / "submitted").read_text() == "x\nx\n"


def test_job_that_always_dies_is_killed_and_the_other_goes_on(monkeypatch, capsys):
    dying = ["FAILED", "FAILED", "FAILED", "OUT_OF_MEMORY"]
    words = ["hydra.launcher.max_deaths=1", "seed=0", "quiet=false"]
    assert sweep(monkeypatch, Cluster(monkeypatch, dying[:2]), *words) == 1
    assert "killed: its job died 2 times (FAILED)" in " ".join(capsys.readouterr().err.split())
    assert results() == []


def test_cancelled_job_is_not_submitted_again(place, monkeypatch):
    assert sweep(monkeypatch, Cluster(monkeypatch, ["CANCELLED"])) == 1
    assert results() == ["finished"]
    assert (place / "submitted").read_text() == "x\n"


def test_jobs_of_a_killed_sweep_are_taken_over(place, monkeypatch):
    def killed():
        if (place / "submitted").exists():
            raise ZeroDivisionError
        return {}

    monkeypatch.setattr(slurm, "states", killed)
    with pytest.raises(SystemExit):
        main(SWEEP)
    (record,) = place.glob("runs/slurm/*/jobs.json")
    assert sorted(job for job, _ in json.loads(record.read_text()).values()) == ["1_0", "1_1"]
    os.utime(record, (0, 0))
    cluster = Cluster(monkeypatch)
    first = iter([{"1_0": "RUNNING", "1_1": "PENDING"}])
    assert sweep(monkeypatch, lambda: next(first, None) or cluster()) == 0
    assert (place / "submitted").read_text() == "x\n"
    assert results() == ["finished"] * 2
    assert list(place.glob("runs/slurm/*/jobs.json")) == [record]  # its jobs were still there
    assert sweep(monkeypatch, Cluster(monkeypatch), "seed=0,1,2") == 0
    assert not record.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hydra.launcher.partitoin=gpu"], "hydra.launcher.partitoin=gpu: there is no key"),
        (["hydra.launcher.timeout_min=long"], "hydra.launcher.timeout_min=long"),
    ],
)
def test_keys_are_checked(place, capsys, words, said):
    with pytest.raises(SystemExit) as done:
        main([*SWEEP, *words])
    assert done.value.code == 2
    assert said in capsys.readouterr().err
    assert not (place / "runs").exists()


def test_refusals_of_slurm_are_told_in_one_line(place, monkeypatch, capsys):
    monkeypatch.setattr(slurm, "states", dict)
    program(place, "sbatch", "echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1")
    with pytest.raises(SystemExit) as done:
        main([*SWEEP, "hydra.launcher.partition=gpu"])
    assert done.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("hydra/launcher=slurm: sbatch: error: invalid partition specified: gpu")


def test_no_slurm_is_told_before_anything_is_written(place, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/bin/nowhere")
    with pytest.raises(SystemExit) as done:
        main(SWEEP)
    assert done.value.code == 2
    assert "hydra/launcher=slurm: there is no 'sbatch'" in capsys.readouterr().err
    assert not (place / "runs").exists()


def test_table_with_a_launcher_of_its_own_takes_the_one_asked_for(capsys):
    words = ["hydra.launcher.partition=gpu", "hydra.launcher.timeout_min=240"]
    with pytest.raises(SystemExit):
        main(["+table=quick", "hydra/launcher=slurm", *words, "--cfg", "hydra"])
    told = capsys.readouterr().out.split()
    for key, value in (
        ("partition:", "gpu"),
        ("timeout_min:", "240"),
        ("folder:", "${runs}/slurm"),
    ):
        assert told[told.index(key) + 1] == value


def test_script_has_what_is_asked(place):
    keys = vars(slurm.SlurmKeys(partition="gpu", gpus_per_node=1, mem_gb=1.5, timeout_min=30))
    keys = {k: v for k, v in keys.items() if k != "_target_"}
    keys |= {"additional_parameters": {"mail-type": "END"}, "setup": ["module load cuda"]}
    executor = slurm.executor_of(place / "logs", slurm.sbatch_options(keys, arrays=2))
    executor.parameters["map_count"] = 1000
    command = executor._submitit_command_str
    lines = executor._make_submission_file_text(command, "").splitlines()
    for option in (
        "array=0-999%128", "partition=gpu", "gpus-per-node=1", "mem=1536M", "time=30",
        "cpus-per-task=2", "signal=USR1@120", "requeue", "mail-type=END", "job-name=sparsebench",
    ):  # fmt: skip
        assert f"#SBATCH --{option}" in lines
    assert "module load cuda" in lines
    assert lines[-2].startswith("srun ") or lines[-1].startswith("srun ")
    assert f"{sys.executable} -u -m sparsebench.sweep.slurm_cell {place}/logs" in "".join(lines)


@pytest.mark.parametrize(
    ("signum", "state", "restarts", "again"),
    [
        (signal.SIGUSR1, "RUNNING", 0, True),
        (signal.SIGUSR1, "", 3, True),  # squeue does not answer: the limit comes all the same
        (signal.SIGUSR1, "COMPLETING", 0, False),
        (signal.SIGUSR1, "RUNNING", 4, False),
        (signal.SIGTERM, "RUNNING", 0, True),
        (signal.SIGTERM, "COMPLETING", 0, False),
        (signal.SIGTERM, "", 0, False),
        (signal.SIGINT, "RUNNING", 0, False),
    ],
)
def test_which_signals_requeue(signum, state, restarts, again):
    assert goes_on(signum, state, restarts, limit=4) is again


@pytest.mark.parametrize(
    ("state", "own", "deaths", "why"),
    [
        ("FAILED", True, 1, ""),
        ("", True, 2, ""),
        ("NODE_FAIL", True, 3, "its job died 3 times (NODE_FAIL)"),
        ("", False, 3, "its job died 3 times (gone from the queue)"),
        ("CANCELLED", True, 1, "its job was cancelled"),
        ("CANCELLED", False, 1, ""),  # by the other sweep's Ctrl-C
    ],
)
def test_what_becomes_of_a_job_that_is_gone(state, own, deaths, why):
    assert what_now(state, own, deaths, limit=2) == why


def test_a_task_of_an_array_requeues_itself_alone(place, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")  # in an array also the number of the whole
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    program(place, "squeue", "echo RUNNING")
    assert slurm_job() == "7_3"
    assert requeue(signal.SIGTERM) == "job 7_3 is requeued and goes on"
    assert (place / "asked").read_text() == "scontrol requeue 7_3\n"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "5")
    assert requeue(signal.SIGUSR1, limit=5) == "job 7_3 is not requeued; the same command goes on"
    assert (place / "asked").read_text() == "scontrol requeue 7_3\n"


def test_squeue_is_read_and_its_silence_too(place):
    program(place, "squeue", "echo 12_0 RUNNING; echo 13 NODE_FAIL")
    assert slurm_queue.states() == {"12_0": "RUNNING", "13": "NODE_FAIL"}
    assert slurm_queue.alive("12_0", slurm_queue.states())
    assert not slurm_queue.alive("13", slurm_queue.states())
    assert not slurm_queue.alive("14", slurm_queue.states())
    program(place, "squeue", "exit 1")
    assert slurm_queue.states() is None
    assert slurm_queue.largest_array() == 1001
