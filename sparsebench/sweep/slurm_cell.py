"""What SLURM runs for each cell, on some node: the run, and what becomes of the job after it.

``python -m sparsebench.sweep.slurm_cell FOLDER`` takes the place of submitit's own entry, which
needs a part of setuptools that is gone, and whose handlers would ignore SIGTERM.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sparsebench.errors import Interrupted
from sparsebench.files import read_json, write_json
from sparsebench.signals import REQUEUED, handling, requeue, slurm_job, stop_at_once

if TYPE_CHECKING:  # all that takes long to import comes when signals are heard
    from hydra.core.config_loader import ConfigLoader
    from omegaconf import DictConfig

    from sparsebench.sweep.job import Report

#: Seconds that a job waits for its file, which is put into place after it was submitted.
PATIENCE = 60.0


@dataclass(frozen=True)
class Cell:
    """One run, as submitit pickles it.

    It has no state that could get lost: all of it is in the run's folder. So the job that is
    requeued starts with the same file, and submitit's way of pickling a callable anew at a
    signal is not needed.

    Attributes:
        overrides: what is this run's own.
        loader: composes configs.
        config: the config of the sweep.
        requeues: how often SLURM may start the job again.
    """

    overrides: tuple[str, ...]
    loader: ConfigLoader
    config: DictConfig
    requeues: int

    def __call__(self) -> Report:
        """Do the run."""
        from hydra.core.utils import setup_globals
        from omegaconf import open_dict, read_write

        from sparsebench.config.schema import register
        from sparsebench.sweep import sweeper
        from sparsebench.sweep.job import report_of

        setup_globals()
        register()
        sweeper.register()
        cfg = self.loader.load_sweep_config(self.config, list(self.overrides))
        with read_write(cfg), open_dict(cfg):
            del cfg["hydra"]
        return report_of(cfg)


def main(folder: Path) -> None:
    """Do the run of this job, or go on with it, and leave a report.

    Args:
        folder: where submitit has put the :class:`Cell`.

    Raises:
        SystemExit: the run was interrupted; nothing is reported, since the job goes on, or the
            sweep sees that it ended and decides.
    """
    limit = 1  # until the cell says how often; it may be that reading it is interrupted
    try:
        with handling(stop_at_once):
            cell = _wait_for_cell(folder)
            limit = cell.requeues
            report = cell()
    except Interrupted as error:
        said = requeue(error.signum, limit)
        print(f"sparsebench: {error}; {said}", file=sys.stderr, flush=True)
        if said.endswith(REQUEUED) or int(os.environ.get("SLURM_RESTART_COUNT") or 0) < limit:
            sys.exit(128 + error.signum)
        from sparsebench.sweep.job import Report

        report = Report("interrupted", f"{error}; all {limit} requeues are used up")
    write_json(report_file(folder, slurm_job()), asdict(report))


def report_file(folder: Path, job: str) -> Path:
    """Where a job leaves its report."""
    return folder / f"{job}_report.json"


def read_report(folder: Path, job: str) -> Report | None:
    """What a job has reported, or None as long as it has not."""
    from sparsebench.sweep.job import Report

    told = read_json(report_file(folder, job))
    return Report(**told) if isinstance(told, dict) else None


def _wait_for_cell(folder: Path) -> Cell:
    _alone()
    path = folder / f"{slurm_job()}_submitted.pkl"
    until = time.monotonic() + PATIENCE
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.2)
    cell = pickle.loads(path.read_bytes()).function
    assert isinstance(cell, Cell)
    return cell


def _alone() -> None:
    """One process on the processors SLURM gave, and for Lightning no rank of a larger job.

    Under SLURM's variables Lightning would count the tasks, and requeue the job itself.
    """
    if cpus := os.environ.get("SLURM_CPUS_PER_TASK"):
        os.environ.setdefault("OMP_NUM_THREADS", cpus)  # torch reads it when it is imported
    for name in ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"):
        os.environ.pop(name, None)


if __name__ == "__main__":
    # by its real name, under which the pickle knows the class
    from sparsebench.sweep import slurm_cell

    slurm_cell.main(Path(sys.argv[1]))
