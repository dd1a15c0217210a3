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
from omegaconf import DictConfig, open_dict, read_write

from sparsebench.dashboard.names import logger_overrides
from sparsebench.errors import Interrupted, UserError
from sparsebench.sweep.cells import Cells, Families, lay_out
from sparsebench.sweep.composing import GridComposer
from sparsebench.sweep.cores import available, divide
from sparsebench.sweep.grid import Grid, free_grid, read_overrides, table_grid
from sparsebench.sweep.job import Job, Report
from sparsebench.sweep.launch import Launch
from sparsebench.sweep.order import costs_of, ordered
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

    def __init__(self, params: dict[str, str] | None = None, order: str = "table") -> None:
        """Take sweeps that are written in a config (``hydra.sweeper.params``).

        Args:
            params: override keys to values, in the grammar of the command line.
            order: of the runs: ``shortest`` or ``longest`` first, or as the ``table`` says.
        """
        self.params = dict(params or {})
        self.order = order

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep Hydra's objects; jobs run our task function, which travels to other processes."""
        self._config = config
        self.context = hydra_context
        with read_write(config), open_dict(config):
            config.hydra.overrides.hydra = _with_launcher(config)

    def sweep(self, arguments: list[str]) -> None:
        """The whole sweep.

        Raises:
            UserError: a cell can't be; nothing was run.
            Interrupted: by a signal; what has ended is kept.
            CellsFailed: all is done that can be.
        """
        grid = self._grid([*(f"{k}={v}" for k, v in self.params.items()), *arguments])
        composer = GridComposer(self.context.config_loader, self._config)
        cells = lay_out(grid, composer, Families(composer), running=not grid.spec.plan)
        if grid.spec.plan:
            from sparsebench.sweep.plan import show_plan

            show_plan(grid, cells, composer)
            return
        with tempfile.TemporaryDirectory(prefix="sparsebench-") as workers:
            reports = self._launch(grid, cells, composer, Path(workers))
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

    def _launch(
        self, grid: Grid, cells: Cells, composer: GridComposer, workers: Path
    ) -> dict[str, Report]:
        todo = [run for name, run in cells.runs.items() if name not in cells.done]
        costs = costs_of(cells, todo)
        if todo and grid.spec.scale == "paper":
            from sparsebench.sweep import computing

            if cost := computing.said(grid, cells, composer, [run.identity for run in todo]):
                print(f"sparsebench: {cost}", file=sys.stderr)
        order = grid.spec.order if self.order == "table" else self.order
        todo = ordered(todo, order, costs.of)
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.context, task_function=Job(os.getpid(), workers), config=self._config
        )
        at_once = self._at_once()
        if at_once:
            divide(workers, at_once)
        in_wandb = logger_overrides(grid.spec.name, grid.spec.scale, given=grid.last)
        launch = Launch(launcher, workers, [*self._extra(at_once), *in_wandb])
        watch = Watch(
            launch, todo, len(cells.done), costs, at_once=at_once, quiet=self._config.quiet
        )
        try:
            with watch:
                launch.all(todo)
        except Interrupted:
            print(f"sparsebench: {watch.done} of {watch.total} runs are done", file=sys.stderr)
            raise
        return launch.reports

    def _at_once(self) -> int | None:
        """Runs at the same time on this machine; None if the launcher decides it elsewhere."""
        launcher = self._config.hydra.launcher
        if launcher["_target_"].endswith(".BasicLauncher"):
            return 1
        jobs: int | None = launcher.get("n_jobs")
        if jobs is None or jobs > 0:
            return jobs
        return max(1, len(available()) + 1 + jobs)  # joblib's -1 is all cores, -2 all but one

    def _extra(self, at_once: int | None) -> list[str]:
        """How the runs of a sweep are run: silently, and sharing the cores."""
        extra = ["quiet=true"]
        jobs = self._config.hydra.launcher.get("n_jobs")
        if jobs and at_once and self._config.trainer.threads is None:
            extra.append(f"trainer.threads={max(1, len(available()) // at_once)}")
        return extra


def _with_launcher(config: DictConfig) -> list[str]:
    """Hydra's own overrides, among them the launcher that a table chose.

    Cells are composed without the table, and would not know the keys of its launcher.
    """
    words = list(config.hydra.overrides.hydra)
    choice = config.hydra.runtime.choices.get("hydra/launcher")
    given = any(word.lstrip("+").startswith("hydra/launcher=") for word in words)
    dials = any(word.lstrip("+").startswith("hydra.launcher.") for word in words)
    return [f"hydra/launcher={choice}", *words] if dials and choice and not given else words


def register() -> None:
    """Make sweeper and SLURM launcher known to Hydra; joblib's gets defaults that fit runs."""
    from hydra_plugins.hydra_joblib_launcher.config import JobLibLauncherConf

    from sparsebench.sweep import slurm

    slurm.register()
    plugins = Plugins.instance()
    plugins.register(GridSweeper)
    plugins.class_name_to_class[TARGET] = GridSweeper
    joblib = JobLibLauncherConf(n_jobs=2, batch_size="1")
    ConfigStore.instance().store(
        group="hydra/launcher", name="joblib", node=joblib, provider="sparsebench"
    )
