"""The end of a sweep: its table in all formats, where they are, and what is missing."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sparsebench.errors import UserError
from sparsebench.files import write_text
from sparsebench.sweep.cells import Cells
from sparsebench.sweep.claims import Verdict, decide, write_claims
from sparsebench.sweep.formats import comma_separated, latex, markdown, terminal
from sparsebench.sweep.grid import Grid
from sparsebench.sweep.job import Report
from sparsebench.sweep.results import Results, collect, folder_of
from sparsebench.sweep.sheet import Sheet, sheet

#: Columns of a terminal that is none.
WIDTH = 120


def report(
    grid: Grid, cells: Cells, reports: Mapping[str, Report], runs: Path, *, quiet: bool
) -> bool:
    """Write and print the table of a sweep.

    Args:
        grid: rows, columns and seeds.
        cells: the runs behind them.
        reports: how the runs of this call ended.
        runs: folder of the runs.
        quiet: print the paths only.

    Returns:
        Whether all runs have finished.
    """
    results = collect(grid, cells, reports)
    verdicts = decide(results)
    shown = sheet(results, _command(grid), verdicts)
    paths = write(results, shown, verdicts, folder_of(results, runs, _digest(grid, cells)))
    _print(shown, paths, quiet=quiet)
    _complain(results)
    return not results.unfinished


def write(results: Results, shown: Sheet, verdicts: Sequence[Verdict], folder: Path) -> list[Path]:
    """Write the table's files, each whole or not at all.

    They are ``table.md``, ``.tex``, ``.csv``, ``.png`` and ``.svg``, ``claims.json`` and
    ``report.html``.
    """
    from sparsebench.sweep.html.page import report_html
    from sparsebench.sweep.picture import draw, save

    try:
        folder.mkdir(parents=True, exist_ok=True)
        figure = draw(results)
        for stale in () if figure else ("png", "svg"):
            (folder / f"table.{stale}").unlink(missing_ok=True)
        pictures = save(figure, folder, "table") if figure else []
        texts = {
            "md": markdown(shown, "table.png" if figure else None),
            "tex": latex(shown),
            "csv": comma_separated(results),
        }
        for ending, text in texts.items():
            write_text(folder / f"table.{ending}", text)
        write_claims(verdicts, folder / "claims.json")
        svg = (folder / "table.svg").read_text() if figure else None
        write_text(folder / "report.html", report_html(results, shown, svg))
    except OSError as error:
        raise UserError(f"{folder}: the table can't be written there ({error.strerror})") from error
    others = [folder / name for name in ("claims.json", "report.html")]
    return [*(folder / f"table.{ending}" for ending in texts), *pictures, *others]


def _command(grid: Grid) -> str:
    if grid.changed:
        return f"sparsebench {shlex.join(sys.argv[1:])}"
    spec, seeds = grid.spec, list(grid.seeds)
    number: object = len(seeds) if seeds == list(range(len(seeds))) else f"'{seeds}'"
    return f"sparsebench -m +table={spec.name} table.scale={spec.scale} table.seeds={number}"


def _digest(grid: Grid, cells: Cells) -> str:
    """Names a grid by its cells: the same grid has the same folder."""
    labels = [[line.label for line in lines] for lines in (grid.rows, grid.columns)]
    text = json.dumps([labels, sorted((*place, name) for place, name in cells.of.items())])
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _print(shown: Sheet, paths: list[Path], *, quiet: bool) -> None:
    from rich.console import Console

    if not quiet:
        console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
        console.print(terminal(shown))
    first, *others = paths
    print(f"{first.resolve()}  {' '.join(path.name for path in others)}", flush=True)


def _complain(results: Results) -> None:
    """A table of the runs without a result, on stderr."""
    if not results.unfinished:
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Without a result", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for head in ("run", "ended", "why", "folder"):
        table.add_column(head, overflow="fold")
    for outcome in results.unfinished:
        table.add_row(outcome.run.label, outcome.status, outcome.error, str(outcome.run.folder))
    console = Console(
        stderr=True, width=None if sys.stderr.isatty() else WIDTH, highlight=False, markup=False
    )
    console.print(table)
    count = len(results.unfinished)
    again = "; the same command tries again those that have not diverged"
    hint = again if any(o.status != "diverged" for o in results.unfinished) else ""
    print(
        f"sparsebench: {count} of {len(results.outcomes)} runs have no result{hint}",
        file=sys.stderr,
    )
