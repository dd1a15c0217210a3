"""What a table of published scale will cost, from FLOPs, before any of it is run."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import Any

from sparsebench.sweep.cells import Cells, Compose
from sparsebench.sweep.grid import Grid

#: FLOP/s that training sustains on one data-centre GPU (an A100 in mixed precision or TF32
#: reaches about a fifth to a tenth of its peak on convolutional networks).
SUSTAINED = 3e13


def gpu_hours(grid: Grid, cells: Cells, compose: Compose, left: Collection[str]) -> float | None:
    """GPU-hours of some runs, each as dear as training the dense network: masks save no time.

    Args:
        grid: rows, columns and seeds.
        cells: the runs behind them.
        compose: from overrides to a config.
        left: identities of the runs that count.

    Returns:
        Hours at :data:`SUSTAINED`; None if the size of the data or a network is not known.
    """
    total, left = 0.0, set(left)
    for i, j in grid.places:
        names = {cells.of[i, j, seed] for seed in grid.seeds}
        wanted = names & left
        if not wanted:
            continue
        left -= wanted
        run = cells.runs[next(iter(wanted))]
        cfg = compose(grid.overrides(grid.rows[i], grid.columns[j]))
        if cfg.task.name == "profile":  # counts, and trains nothing
            continue
        forward = _forward(_Key(cfg))
        if forward is None or run.samples is None:
            return None
        total += 3 * forward * run.samples * run.epochs * len(wanted)
    return total / SUSTAINED / 3600


def said(grid: Grid, cells: Cells, compose: Compose, left: Collection[str]) -> str:
    """The estimate in a sentence; empty for a small scale, and where it is next to nothing."""
    hours = gpu_hours(grid, cells, compose, left) if grid.spec.scale == "paper" else None
    if hours is None or hours < 0.1:
        return ""
    amount = f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}"
    rate = f"{SUSTAINED / 1e12:.0f} TFLOP/s"
    return f"about {amount} GPU-hours for {len(left):,} runs, from FLOPs at {rate} a GPU"


class _Key:
    """A config by what its network depends on."""

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg
        self.text = f"{cfg.model} {cfg.data.input_shape} {cfg.data.num_classes}"

    def __hash__(self) -> int:
        return hash(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.text == other.text


@cache
def _forward(key: _Key) -> float | None:
    """FLOPs of one example through the dense network, which is built without its weights."""
    import torch

    from sparsebench.sparsity.flops import layer_flops
    from sparsebench.tasks.build import network

    data = key.cfg.data
    if not data.input_shape or not data.num_classes:
        return None
    with torch.device("meta"):
        model, dense = network(key.cfg, tuple(data.input_shape), data.num_classes)
    return dense or layer_flops(model, tuple(data.input_shape)).total
