"""``sparsebench compare OLD NEW [--json] [--html FILE]``: two tables, from their files.

Figures come from ``table.csv``, verdicts from ``claims.json``. Nothing is read from runs, so that
tables of other machines can be compared.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench.errors import UserError, bad_value
from sparsebench.files import read_json, write_text
from sparsebench.sweep.differences import (
    LEVEL,
    Difference,
    Place,
    VerdictChange,
    differences,
    read_figures,
    verdict_changes,
)

if TYPE_CHECKING:
    from rich.table import Table

#: Columns of a terminal that is none.
WIDTH = 120


def compare_command(argv: list[str]) -> int:
    """Print what changed between the tables of two folders; differences are no error.

    Args:
        argv: the two folders; ``--json`` for machines, ``--html FILE`` for a page.

    Returns:
        Exit code 0.

    Raises:
        UserError: a folder without a table.
    """
    folders = [word for word in argv if word != "--json"]
    page = None
    if "--html" in folders[:-1]:
        at = folders.index("--html")
        page = Path(folders[at + 1])
        del folders[at : at + 2]
    if len(folders) != 2 or any(word.startswith("-") for word in folders):
        said = "two folders with tables are needed, OLD and NEW; --json and --html FILE if wanted"
        raise bad_value("compare", " ".join(argv), said)
    (old, old_claims), (new, new_claims) = map(_read, ("OLD", "NEW"), folders)
    found, verdicts = differences(old, new), verdict_changes(old_claims, new_claims)
    places = len({*old, *new})
    if page:
        _write_page(page, folders, places, found, verdicts)
    if "--json" in argv:
        print(json.dumps(_as_dict(folders, places, found, verdicts), indent=2, allow_nan=False))
    else:
        _show(folders, places, found, verdicts)
    return 0


def _write_page(
    page: Path,
    folders: Sequence[str],
    places: int,
    found: Sequence[Difference],
    verdicts: Sequence[VerdictChange],
) -> None:
    from sparsebench.sweep.html.compare import compare_html

    write_text(page, compare_html(folders[0], folders[1], places, found, verdicts))


def _read(which: str, given: str) -> tuple[dict[Place, dict[int, float]], list[Any]]:
    """Figures and claims of a folder; a table without claims has no claims.json."""
    table, claims = Path(given) / "table.csv", Path(given) / "claims.json"
    if not table.is_file():
        said = "a folder with a table.csv is needed"
        raise bad_value(f"compare {which}", given, said, _tables_near(Path(given)))
    try:
        figures = read_figures(table.read_text(encoding="utf-8"), str(table))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{table}: can't be read ({error})") from error
    found = read_json(claims) if claims.exists() else []
    if not isinstance(found, list) or not all(isinstance(c, dict) and "id" in c for c in found):
        raise UserError(f"{claims}: damaged: a list of claims is needed")
    return figures, found


def _tables_near(folder: Path) -> list[str]:
    """Folders with tables in the nearest folder that exists, and beside it."""
    there = next((path for path in (folder, *folder.parents) if path.is_dir()), Path())
    patterns = ("table.csv", "*/table.csv", "*/*/table.csv")
    bases = (there, there.parent)
    return [str(path.parent) for base in bases for p in patterns for path in base.glob(p)]


def _as_dict(
    folders: Sequence[str],
    places: int,
    found: Sequence[Difference],
    verdicts: Sequence[VerdictChange],
) -> dict[str, Any]:
    return {
        "old": folders[0],
        "new": folders[1],
        "figures": places,
        "differences": [asdict(one) for one in found],
        "verdicts": [asdict(one) for one in verdicts],
    }


def _show(
    folders: Sequence[str],
    places: int,
    found: Sequence[Difference],
    verdicts: Sequence[VerdictChange],
) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False, markup=False)
    tested = sum(one.p is not None for one in found)
    significant = sum(bool(one.significant) for one in found)
    console.print(f"{folders[0]} → {folders[1]}", style="bold")
    console.print(f"figures that differ: {len(found)} of {places}, {significant} significantly")
    if found:
        console.print(_differences_table(found))
    if tested:
        console.print(
            f"new - old ± half its 95 % interval, in the unit of the runs; *: p below "
            f"{100 * LEVEL:g} % by Holm's correction over {tested} tests",
            style="dim",
        )
    console.print(f"verdicts that differ: {len(verdicts)}")
    if verdicts:
        console.print(_verdicts_table(verdicts))


def _differences_table(found: Sequence[Difference]) -> Table:
    table = _table("row", "column", "figure", "old (n)", "new (n)", "new - old", "p", "")
    for one in found:
        half = "" if one.high is None else f" ± {one.high - (one.difference or 0.0):.2g}"
        p = "" if one.p_holm is None else f"{one.p_holm:.2g}{'*' if one.significant else ' '}"
        old = f"{_number(one.old)} ({one.old_n})" if one.old_n else ""
        new = f"{_number(one.new)} ({one.new_n})" if one.new_n else ""
        fields = (old, new, _number(one.difference) + half, p, one.test or one.status)
        style = "bold" if one.significant else ""
        table.add_row(one.row, one.column, one.metric, *fields, style=style)
    return table


def _verdicts_table(verdicts: Sequence[VerdictChange]) -> Table:
    table = _table("claim", "", "old", "new")
    for one in verdicts:
        table.add_row(one.id, one.claim, one.old or "not there", one.new or "not there")
    return table


def _table(*heads: str) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in heads:
        table.add_column(Text(head), overflow="fold")
    return table


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"
