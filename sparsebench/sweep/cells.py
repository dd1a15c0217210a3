"""The runs behind a grid: composed, checked and named before any of them starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, open_dict, read_write

from sparsebench.config.check import check
from sparsebench.config.identity import identity, run_folder
from sparsebench.config.refusal import refusal
from sparsebench.errors import UserError
from sparsebench.sweep.grid import Grid, unique

#: From overrides to the config of one run.
Composer = Callable[[Sequence[str]], DictConfig]


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
        done: identities that need no work.
    """

    runs: dict[str, Run] = field(default_factory=dict)
    of: dict[tuple[int, int, int], str] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)


def lay_out(grid: Grid, compose: Composer) -> Cells:
    """Compose and check every cell; equal runs become one.

    Seeds are the outermost loop, so that a sweep that is stopped has whole replicates.

    Raises:
        UserError: one line that also names the overrides of the cell.
    """
    composed: dict[tuple[int, int], DictConfig] = {}
    cells = Cells()
    for seed in grid.seeds:
        for i, j in grid.places:
            overrides = grid.overrides(grid.rows[i], grid.columns[j])
            try:
                if (i, j) not in composed:
                    composed[i, j] = compose([*overrides, f"seed={seed}"])
                cfg = composed[i, j]
                cfg.seed = seed  # nothing else of a config depends on it before it is resolved
                _add(cells, grid, (i, j, seed), cfg, [*overrides, f"seed={seed}"])
            except Exception as error:
                told = error if isinstance(error, UserError) else refusal(error)
                if told is None:
                    raise
                raise UserError(f"{told} (cell: {' '.join(overrides) or 'all defaults'})") from None
    return cells


def _add(
    cells: Cells, grid: Grid, place: tuple[int, int, int], cfg: DictConfig, overrides: list[str]
) -> None:
    from sparsebench.run import finished

    check(cfg)
    name = identity(cfg)
    cells.of[place] = name
    if name in cells.runs:
        return
    i, j, seed = place
    words = [
        grid.rows[i].label,
        _named(grid.spec.columns.key, grid.columns[j].label),
        f"seed {seed}",
    ]
    cells.runs[name] = Run(
        identity=name,
        folder=run_folder(cfg),
        overrides=tuple(unique(overrides)),
        label=", ".join(word for word in words if word),
        epochs=int(cfg.epochs),
        sparse=bool(cfg.method.get("sparse", True)),
        samples=round(cfg.data.train_size * (cfg.data.subset or 1))
        if cfg.data.train_size
        else None,
    )
    if finished(cfg, cells.runs[name].folder) is not None:
        cells.done.add(name)


def _named(key: str, label: str) -> str:
    return f"{key} {label}".strip() if label else ""


def composer(config_loader: ConfigLoader, master: DictConfig) -> Composer:
    """Compose as the launcher will, without Hydra's own part."""

    def compose(overrides: Sequence[str]) -> DictConfig:
        cfg = config_loader.load_sweep_config(master, list(overrides))
        with read_write(cfg), open_dict(cfg):
            del cfg["hydra"]
        return cfg

    return compose
