"""Hydra's ``-m``: a grid of runs whose results become a table.

A plugin of Hydra without the folder Hydra looks for plugins in: :func:`register` makes it
known, and ``configs/hydra/sweeper/grid.yaml`` makes it the default.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from sparsebench.errors import Interrupted, UserError
from sparsebench.sweep.cells import Cells, composer, lay_out
from sparsebench.sweep.grid import Grid, free_grid, read_overrides, table_grid
from sparsebench.sweep.job import Job, Report
from sparsebench.sweep.launch import Launch
from sparsebench.sweep.spec_check import read_table
from sparsebench.sweep.watch import Watch

#: Hydra only builds plugins whose name begins like this.
TARGET = "hydra_plugins.sparsebench.GridSweeper"


#: Fields of a table that the command line may set and still have the table as it is.
OWN_DIALS = {"scale", "seeds", "plan", "order"}


class CellsFailed(RuntimeError):
    """The sweep is over, its table is written, and some of its runs have no result."""


class GridSweeper(Sweeper):
    """Runs what is missing of a grid, then makes the table."""

    def __init__(self, params: dict[str, str] | None = None) -> None:
        """Take sweeps that are written in a config (``hydra.sweeper.params``).

        Args:
            params: override keys to values, in the grammar of the command line.
        """
        self.params = dict(params or {})

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep Hydra's objects; jobs run our task function, which travels to other processes."""
        self._config = config
        self.context = hydra_context

    def sweep(self, arguments: list[str]) -> None:
        """The whole sweep.

        Raises:
            UserError: a cell can't be; nothing was run.
            Interrupted: by a signal; what has ended is kept.
            CellsFailed: all is done that can be.
        """
        grid = self._grid([*(f"{k}={v}" for k, v in self.params.items()), *arguments])
        cells = lay_out(grid, composer(self.context.config_loader, self._config))
        with tempfile.TemporaryDirectory(prefix="sparsebench-") as workers:
            reports = self._launch(cells, Path(workers))
        from sparsebench.sweep.report import report

        if not report(grid, cells, reports, Path(self._config.runs), quiet=self._config.quiet):
            raise CellsFailed

    def _grid(self, arguments: list[str]) -> Grid:
        asked = read_overrides(arguments, self.context.config_loader)
        about = [item.name.partition(".")[2] for item in asked if item.name.startswith("table.")]
        asked = [item for item in asked if item.name.partition(".")[0] != "table"]
        config = self._config
        if config.table is None:
            subject = f"{config.model.name} on {config.data.name}"
            return free_grid(asked, subject, config.method.name, config.seed)
        if not isinstance(config.table, DictConfig):
            raise UserError(f"table={config.table}: a table is chosen by +table=NAME")
        name = config.hydra.runtime.choices.get("table", "?")
        spec = read_table(config.table, f"table/{name}.yaml", self._path(name), about)
        return table_grid(spec, asked, changed=bool(set(about) - OWN_DIALS))

    def _path(self, table: str) -> Path | None:
        """Where the YAML of a table is, for messages."""
        for source in self.context.config_loader.get_sources():
            path = Path(source.path) / "table" / f"{table}.yaml"
            if source.scheme() == "file" and path.exists():
                return path
        return None

    def _launch(self, cells: Cells, workers: Path) -> dict[str, Report]:
        todo = [run for name, run in cells.runs.items() if name not in cells.done]
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.context, task_function=Job(os.getpid(), workers), config=self._config
        )
        launch = Launch(launcher, workers, self._extra())
        watch = Watch(launch, todo, len(cells.done), quiet=self._config.quiet)
        try:
            with watch:
                launch.all(todo)
        except Interrupted:
            print(f"sparsebench: {watch.done} of {watch.total} runs are done", file=sys.stderr)
            raise
        return launch.reports

    def _extra(self) -> list[str]:
        """How the runs of a sweep are run: silently, and sharing the cores."""
        extra = ["quiet=true"]
        jobs = self._config.hydra.launcher.get("n_jobs")
        if jobs and self._config.trainer.threads is None:
            cores = (
                len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
            )
            at_once = jobs if jobs > 0 else cores
            extra.append(f"trainer.threads={max(1, (cores or 1) // (at_once or 1))}")
        return extra


def register() -> None:
    """Make the sweeper known to Hydra, and give joblib's launcher defaults that fit runs."""
    from hydra_plugins.hydra_joblib_launcher.config import JobLibLauncherConf

    plugins = Plugins.instance()
    plugins.register(GridSweeper)
    plugins.class_name_to_class[TARGET] = GridSweeper
    joblib = JobLibLauncherConf(n_jobs=2, batch_size="1")
    ConfigStore.instance().store(
        group="hydra/launcher", name="joblib", node=joblib, provider="sparsebench"
    )
