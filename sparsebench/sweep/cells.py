"""The runs behind a grid: composed, checked and named before any of them starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from sparsebench.config.check import check
from sparsebench.config.identity import identities
from sparsebench.config.refusal import refusal
from sparsebench.errors import UserError
from sparsebench.result import ended, read_result
from sparsebench.sweep.composing import GridComposer
from sparsebench.sweep.family import Family
from sparsebench.sweep.grid import Grid

#: From overrides to the config of one run.
Compose = Callable[[Sequence[str]], DictConfig]


@dataclass(frozen=True)
class Run:
    """One run of a sweep; several cells may share it.

    Attributes:
        identity: its name.
        folder: where it lives.
        overrides: what the launcher is given.
        label: how it is called on the screen.
        epochs: how long it is.
        sparse: whether its method is sparse.
        samples: in its training set, if the config tells.
    """

    identity: str
    folder: Path
    overrides: tuple[str, ...]
    label: str
    epochs: int
    sparse: bool
    samples: int | None = None


@dataclass
class Cells:
    """All runs of a grid.

    Attributes:
        runs: by identity, in the order they are started.
        of: identities by row number, column number and seed.
        done: how those ended that need no work: ``finished`` or ``diverged``.
    """

    runs: dict[str, Run] = field(default_factory=dict)
    of: dict[tuple[int, int, int], str] = field(default_factory=dict)
    done: dict[str, str] = field(default_factory=dict)


def lay_out(
    grid: Grid, compose: Compose, families: Families | None = None, *, running: bool = True
) -> Cells:
    """Compose and check every cell; equal runs become one.

    Seeds are the outermost loop, so that a sweep that is stopped has whole replicates.

    Args:
        grid: rows, columns and seeds.
        compose: from overrides to a config.
        families: names cells without composing each; those that need no work, and all if
            nothing is to be run, are left at that: each value of theirs is checked once.
        running: whether what is missing is to be run.

    Raises:
        UserError: one line that also names the overrides of the cell.
    """
    cells = Cells()
    plans = {place: _plan(grid, place, compose, families) for place in grid.places}
    for number, seed in enumerate(grid.seeds):
        for place, plan in plans.items():
            name = plan.names[number]
            cells.of[*place, seed] = name
            if name in cells.runs:
                continue
            run = cells.runs[name] = plan.run(name, seed)
            result = None if plan.forced else read_result(run.folder)
            if result and ended(result):
                cells.done[name] = str(result["status"])
    if families and running:
        for place, plan in plans.items():
            if not plan.composed and not cells.done.keys() >= set(plan.names):
                _plan(grid, place, compose, None)
    return cells


@dataclass(frozen=True)
class _Plan:
    """What the runs of a cell have in common, and their names by the grid's seeds."""

    names: Sequence[str]
    runs: Path
    overrides: tuple[str, ...]
    label: str
    epochs: int
    sparse: bool
    samples: int | None
    forced: bool
    composed: bool = True

    def run(self, name: str, seed: int) -> Run:
        """The run of a seed."""
        return Run(
            identity=name,
            folder=self.runs / name,
            overrides=(*self.overrides, f"seed={seed}"),
            label=f"{self.label}, seed {seed}" if self.label else f"seed {seed}",
            epochs=self.epochs,
            sparse=self.sparse,
            samples=self.samples,
        )


class Families:
    """The families of cells met so far, each with what its runs have in common."""

    def __init__(self, composer: GridComposer) -> None:
        """Take what knows groups from values."""
        self._composer = composer
        self._known: dict[tuple[Any, ...], tuple[Family, _Plan]] = {}

    def find(self, overrides: Sequence[str], seeds: Sequence[int]) -> _Plan | None:
        """What is known of a cell by its relatives; None if it has to be composed."""
        key, values = self._key(overrides)
        if key not in self._known:
            return None
        family, plan = self._known[key]
        names = family.names(values, seeds)
        return replace(plan, names=names) if names else None

    def add(self, overrides: Sequence[str], cfg: DictConfig, plan: _Plan) -> None:
        """Remember a cell, unless one of its family is known."""
        key, values = self._key(overrides)
        if key not in self._known:
            lines = {name: override.input_line or "" for name, override in values.items()}
            self._known[key] = Family(cfg, lines), plan

    def _key(self, overrides: Sequence[str]) -> tuple[tuple[Any, ...], dict[str, Override]]:
        groups, values = self._composer.split(overrides)
        return (groups, tuple(values)), values


def _plan(grid: Grid, place: tuple[int, int], compose: Compose, families: Families | None) -> _Plan:
    row, column = grid.rows[place[0]], grid.columns[place[1]]
    overrides = grid.overrides(row, column)
    named = f"{grid.spec.columns.key} {column.label}".strip() if column.label else ""
    words = ", ".join(filter(None, [row.label, named]))
    own = tuple(o for o in overrides if not o.startswith("seed="))
    try:
        if families and (plan := families.find(own, grid.seeds)):
            return replace(plan, label=words, overrides=own, composed=False)
        cfg = compose([*overrides, f"seed={grid.seeds[0]}"])
        check(cfg)
        size = cfg.data.train_size
        plan = _Plan(
            names=identities(cfg, grid.seeds),
            runs=Path(cfg.runs).expanduser(),
            overrides=own,
            label=words,
            epochs=int(cfg.epochs),
            sparse=bool(cfg.method.get("sparse", True)),
            samples=round(size * (cfg.data.subset or 1)) if size else None,
            forced=bool(cfg.force),
        )
    except Exception as error:
        told = error if isinstance(error, UserError) else refusal(error)
        if told is None:
            raise
        raise UserError(f"{told} (cell: {' '.join(overrides) or 'all defaults'})") from None
    if families:
        families.add(own, cfg, plan)
    return plan
