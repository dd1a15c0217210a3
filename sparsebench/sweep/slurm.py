"""Hydra's launcher for SLURM: an array job with one task a cell, submitted by submitit.

Not the launcher of hydra-submitit-launcher: that one asks ``sacct``, and so waits for ever for
a job that died where there is no accounting; gives up all cells when one dies; and sends
SIGUSR2. Here a cell whose job died is submitted again, and the others go on.
"""

from __future__ import annotations

import contextlib
import io
import logging
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from sparsebench.errors import Interrupted, UserError
from sparsebench.sweep.job import Report
from sparsebench.sweep.slurm_cell import Cell, read_report
from sparsebench.sweep.slurm_queue import Record, alive, cancel, key, largest_array, states

#: Hydra only builds plugins whose name begins like this.
TARGET = "hydra_plugins.sparsebench.SlurmLauncher"
#: Seconds that running jobs have to write their checkpoints after Ctrl-C (SLURM's own are 30).
PATIENCE = 40.0


@dataclass
class SlurmKeys:
    """The keys of ``hydra/launcher=slurm``; see sbatch's manual for those it knows.

    Attributes:
        folder: logs and submitit's files; on a disk that all nodes share, as ``runs``.
        array_parallelism: most cells that run at once.
        timeout_min: time limit of a job in minutes; a run may take many jobs.
        signal_delay_s: seconds before the limit at which a run is told to checkpoint.
        max_requeues: how often a job is requeued, at its limit or when preempted.
        max_deaths: how often a cell is submitted again whose job died without a word.
        poll_s: seconds between two calls of squeue.
        setup: shell lines before the run, such as ``module load cuda``.
        additional_parameters: further options of sbatch.
    """

    _target_: str = TARGET
    folder: str = "${runs}/slurm"
    name: str = "sparsebench"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    gres: str | None = None
    gpus_per_node: int | None = None
    cpus_per_task: int = 2
    mem_gb: float | None = None
    array_parallelism: int = 256
    timeout_min: int = 240
    signal_delay_s: int = 120
    max_requeues: int = 100
    max_deaths: int = 2
    poll_s: float = 10.0
    setup: list[str] | None = None
    additional_parameters: dict[str, Any] = field(default_factory=dict)


#: Keys that are sbatch's, by submitit's names for them.
NAMES = {"name": "job_name", "timeout_min": "time", "mem_gb": "mem"}
OURS = ("folder", "array_parallelism", "signal_delay_s", "max_requeues", "max_deaths", "poll_s",
        "additional_parameters")  # fmt: skip


def sbatch_options(keys: dict[str, Any], arrays: int = 1) -> dict[str, Any]:
    """What submitit's executor is given.

    Args:
        keys: values of :class:`SlurmKeys`.
        arrays: into how many arrays the cells are split; they share ``array_parallelism``.
    """
    options = {NAMES.get(k, k): v for k, v in keys.items() if k not in OURS and v is not None}
    if "mem" in options:
        options["mem"] = f"{round(options['mem'] * 1024)}M"
    return options | {
        "array_parallelism": max(1, keys["array_parallelism"] // arrays),
        # since SLURM 22.05 a step does not inherit the job's processors
        "srun_args": [f"--cpus-per-task={keys['cpus_per_task']}"],
        "additional_parameters": {
            "signal": f"USR1@{keys['signal_delay_s']}",
            "requeue": True,
            **keys["additional_parameters"],
        },
    }


def executor_of(folder: Path, options: dict[str, Any]) -> Any:
    """Submitit's executor, whose jobs start our entry.

    Args:
        folder: for its files and the logs.
        options: see :func:`sbatch_options`.
    """
    import submitit

    class Executor(submitit.SlurmExecutor):
        @property
        def _submitit_command_str(self) -> str:
            return f"{self.python} -u -m {Cell.__module__} {shlex.quote(str(self.folder))}"

    logging.getLogger("submitit").setLevel(logging.ERROR)
    executor = Executor(folder)
    executor.update_parameters(**options)
    return executor


@dataclass
class Task:
    """A cell that is waited for.

    Attributes:
        overrides: the cell.
        job: of SLURM, ``12`` or ``12_3``.
        folder: where submitit leaves what the job reports.
        own: whether this sweep has to care for it; else another one that lives does.
        deaths: jobs of this cell that died.
        missing: how many polls in a row did not have the job.
    """

    overrides: tuple[str, ...]
    job: str
    folder: Path
    own: bool = True
    deaths: int = 0
    missing: int = 0


def what_now(state: str, own: bool, deaths: int, limit: int) -> str:
    """What becomes of a cell whose job has ended without a report.

    Args:
        state: last state of the job, empty if SLURM has forgotten it.
        own: whether this sweep has submitted it.
        deaths: how many jobs of this cell have died, with this one.
        limit: after how many deaths it is still submitted again.

    Returns:
        Why it counts as killed, or nothing if it is to be submitted again.
    """
    if own and state == "CANCELLED":
        return "its job was cancelled"
    if deaths <= limit:
        return ""
    return f"its job died {deaths} times ({state or 'gone from the queue'})"


class SlurmLauncher(Launcher):
    """Submits cells, waits for what they report, and submits again those whose job died."""

    def __init__(self, **keys: Any) -> None:
        """Take the values of :class:`SlurmKeys`."""
        self.keys: dict[str, Any] = {
            k: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v
            for k, v in keys.items()
        }

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what composes the runs; the task function is for processes of this machine."""
        self.context = hydra_context
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run all cells.

        Returns:
            For each a :class:`Report`, in the order of ``job_overrides``.

        Raises:
            UserError: SLURM refused the jobs, or is not there.
            Interrupted: by a signal. Its jobs are cancelled, after checkpoints; at SIGUSR1,
                when the sweep is itself a job that comes to its end, they go on.
        """
        _check_here()
        self.record = Record(Path(self.keys["folder"]))
        self.reports: dict[tuple[str, ...], Report] = {}
        cells = list(dict.fromkeys(tuple(words) for words in job_overrides))
        self.tasks = self._adopt(cells)
        taken = {task.overrides for task in self.tasks}
        try:
            self._submit({cell: 0 for cell in cells if cell not in taken})
            self._follow()
        except (Interrupted, KeyboardInterrupt) as error:
            if getattr(error, "signum", signal.SIGINT) != signal.SIGUSR1:
                self._stop()
            raise
        self.record.close()
        return [_returned(words, self.reports[tuple(words)]) for words in job_overrides]

    def _adopt(self, cells: Sequence[tuple[str, ...]]) -> list[Task]:
        """Cells that have a job already, from a sweep that was killed or from one that lives."""
        found = {}
        there = states()
        if there is None:
            raise UserError("hydra/launcher=slurm: squeue does not answer")
        for path, jobs, lives in self.record.others():
            if not any(alive(job, there) for job, _ in jobs.values()):
                if not lives:
                    path.unlink(missing_ok=True)
                continue
            found.update({name: (job, folder, not lives) for name, (job, folder) in jobs.items()})
        tasks = []
        for cell in cells:
            job, folder, own = found.get(key(cell), ("", "", False))
            if alive(job, there):
                tasks.append(Task(cell, job, Path(folder), own))
                if own:
                    self.record.add(key(cell), job, Path(folder))
        self.record.save()
        return tasks

    def _submit(self, deaths: dict[tuple[str, ...], int]) -> None:
        """Submit cells, given how often each has died so far."""
        size = largest_array()
        cells = list(deaths)
        parts = [cells[i : i + size] for i in range(0, len(cells), size)]
        for part in parts:
            for cell, job in zip(part, self._sbatch(part, len(parts)), strict=True):
                self.tasks.append(Task(cell, job, self.record.folder, deaths=deaths[cell]))
                self.record.add(key(cell), job, self.record.folder)
            self.record.save()

    def _sbatch(self, cells: Sequence[tuple[str, ...]], arrays: int) -> list[str]:
        executor = executor_of(self.record.folder, sbatch_options(self.keys, arrays))
        loader, requeues = self.context.config_loader, self.keys["max_requeues"]
        work = [Cell(cell, loader, self.config, requeues) for cell in cells]
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # sbatch's words are in the error
                jobs = executor.submit_array(work)
        except (RuntimeError, OSError) as error:
            lines = [line for line in str(error).splitlines() if "error" in line] or [str(error)]
            raise UserError(f"hydra/launcher=slurm: {lines[0]}") from error
        return [job.job_id for job in jobs]

    def _follow(self) -> None:
        """Until each cell has reported, or has died too often."""
        asked = 0.0
        while self.tasks:
            due = time.monotonic() - asked >= self.keys["poll_s"]
            there = states() if due else None
            asked = time.monotonic() if due else asked
            self._collect()
            if there is not None:
                self._bury(there)
            if due:
                self.record.beat()
            time.sleep(0.2 if self.tasks else 0)

    def _collect(self) -> None:
        for task in list(self.tasks):
            if report := read_report(task.folder, task.job):
                self.reports[task.overrides] = report
                self.tasks.remove(task)

    def _bury(self, there: dict[str, str]) -> None:
        """Jobs that ended without a report, twice in a row: the report may be on its way."""
        again: dict[tuple[str, ...], int] = {}
        for task in list(self.tasks):
            task.missing = 0 if alive(task.job, there) else task.missing + 1
            if task.missing < 2:
                continue
            state, deaths = there.get(task.job, ""), task.deaths + 1
            self.tasks.remove(task)
            if why := what_now(state, task.own, deaths, self.keys["max_deaths"]):
                self.reports[task.overrides] = Report("killed", f"{why}; logs in {task.folder}")
                continue
            said = f"job {task.job} ended without a result ({state or 'gone'}); it is run again"
            print(f"sparsebench: {said}", file=sys.stderr)
            again[task.overrides] = deaths
        self._submit(again)

    def _stop(self) -> None:
        """Cancel what is this sweep's, and let running cells write their checkpoints."""
        jobs = {task.job for task in self.tasks if task.own}
        said = f"cancelling {len(jobs)} jobs; those that run checkpoint first (once more: at once)"
        print(f"sparsebench: {said}", file=sys.stderr)
        cancel(jobs)
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and jobs:
            there = states() or {}
            jobs = {job for job in jobs if alive(job, there)}
            time.sleep(min(1.0, self.keys["poll_s"]))
        self.record.close()


def _returned(overrides: Sequence[str], report: Report) -> JobReturn:
    back = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
    back.return_value = report
    return back


def _check_here() -> None:
    from importlib.util import find_spec

    if find_spec("submitit") is None:
        raise UserError("hydra/launcher=slurm: needs submitit: pip install 'sparsebench[slurm]'")
    for program in ("sbatch", "srun", "squeue"):
        if shutil.which(program) is None:
            raise UserError(f"hydra/launcher=slurm: there is no '{program}'; is this a cluster?")


def register() -> None:
    """Make the launcher and its keys known to Hydra."""
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    plugins = Plugins.instance()
    plugins.register(SlurmLauncher)
    plugins.class_name_to_class[TARGET] = SlurmLauncher
    ConfigStore.instance().store(
        group="hydra/launcher", name="slurm", node=SlurmKeys, provider="sparsebench"
    )
