"""``table.plan=true``: what of a table is done, and what the rest will take; nothing is run."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sparsebench.claim import living_owner
from sparsebench.result import read_result
from sparsebench.sweep.cells import Cells, Compose, Run
from sparsebench.sweep.grid import Grid
from sparsebench.sweep.order import costs_of
from sparsebench.sweep.sheet import heading, titled
from sparsebench.sweep.watch import clock

if TYPE_CHECKING:
    from rich.table import Table

#: In the order they are shown, with their colours.
STATES = {
    "done": "green",
    "running": "cyan",
    "interrupted": "blue",
    "missing": "",
    "failed": "red",
    "diverged": "red",
}
#: Columns of a terminal that is none.
WIDTH = 120


def show_plan(grid: Grid, cells: Cells, compose: Compose) -> None:
    """Print the state of every cell, what is left and about how long it will take."""
    from rich.console import Console

    from sparsebench.sweep import computing

    states = {name: state(run, cells.done.get(name)) for name, run in cells.runs.items()}
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    console.print(_table(grid, cells, states))
    count = Counter(states.values())
    told = ", ".join(f"{count[word]:,} {word}" for word in STATES if count[word])
    console.print(f"  {len(states):,} runs: {told}", soft_wrap=True)
    console.print(f"  {time_left(cells, states)}", soft_wrap=True)
    left = [name for name, word in states.items() if word not in ("done", "diverged")]
    if cost := computing.said(grid, cells, compose, left):
        console.print(f"  {cost}", soft_wrap=True)


def state(run: Run, ended: str | None) -> str:
    """``done``, ``running``, ``interrupted`` (it goes on), ``missing``, ``failed``, ``diverged``.

    Args:
        run: the run.
        ended: how it ended, if it needs no more work.
    """
    if ended:
        return "done" if ended == "finished" else ended
    if not run.folder.is_dir():
        return "missing"
    result = read_result(run.folder)
    if result is not None and result["status"] == "failed":
        return "failed"
    if living_owner(run.folder):
        return "running"
    return "interrupted" if (run.folder / "last.ckpt").exists() else "missing"


def _table(grid: Grid, cells: Cells, states: Mapping[str, str]) -> Table:
    """Rows and columns with the number of seeds in each state."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    spec = grid.spec
    table = Table(box=box.SIMPLE_HEAD, title=Text(titled(spec), "bold"), title_justify="left")
    table.add_column(spec.rows.label or spec.rows.key)
    for j in range(len(grid.columns)):
        table.add_column(heading(grid, j) or "seeds")
    for i, row in enumerate(grid.rows):
        fields = []
        for j in range(len(grid.columns)):
            names = [cells.of[i, j, seed] for seed in grid.seeds if (i, j, seed) in cells.of]
            count = Counter(states[name] for name in names)
            words = [Text(f"{count[w]} {w}", style) for w, style in STATES.items() if count[w]]
            fields.append(Text(", ").join(words))
        table.add_row(Text(row.label), *fields)
    return table


def time_left(cells: Cells, states: Mapping[str, str]) -> str:
    """What the runs that are left will take, one at a time, judged by those that are done."""
    left = [run for name, run in cells.runs.items() if states[name] not in ("done", "diverged")]
    if not left:
        return "nothing is left to do"
    costs = costs_of(cells, left)
    if not costs.measured:
        return f"{len(left):,} are left; no run is done yet that would tell how long they take"
    return f"{len(left):,} are left: about {clock(costs.total(left))} of computing"
