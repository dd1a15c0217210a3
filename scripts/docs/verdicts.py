"""What became of the claims about a method: the tables' results, and claims that wait for them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from marks import plain, row

from sparsebench.config.paths import config_folder

ROOT = Path(__file__).parents[2]
_HEAD = "| claim | verdict | difference, 95 % interval | n | table, scale | source |\n"
_NOTE = """
Paired seeds, Holm's correction over the claims of a table; a difference is in the table's unit. A
verdict of the scale `quick` speaks of that scale only: it reproduces no published figure.
"""


@cache
def tried() -> list[dict[str, Any]]:
    """All claims with a verdict, each with its table: ``results/<table>/<scale>/claims.json``."""
    return [
        {"table": path.parents[1].name, **claim}
        for path in sorted((ROOT / "results").glob("*/*/claims.json"))
        for claim in json.loads(path.read_text())
    ]


@cache
def tables() -> dict[str, dict[str, Any]]:
    """Each table of ``configs/table`` by its name."""
    files = sorted((config_folder() / "table").glob("*.yaml"))
    return {path.stem: yaml.safe_load(path.read_text()) for path in files}


def waiting(method: str) -> dict[str, list[str]]:
    """Claims about a method that no result answers yet, by their table."""
    known = {(claim["table"], claim["id"]) for claim in tried()}
    found: dict[str, list[str]] = {}
    for name, table in tables().items():
        for claim in table.get("claims") or []:
            if claim.get("method") == method and (name, claim["id"]) not in known:
                found.setdefault(name, []).append(claim["claim"])
    return found


def section(method: str) -> str:
    """The verdicts about a method, as Markdown."""
    rows = [_row(claim) for claim in tried() if claim["method"] == method]
    text = _HEAD + "| --- | --- | --- | --- | --- | --- |\n" + "".join(rows) + _NOTE
    text = text if rows else "None yet.\n"
    for table, claims in waiting(method).items():
        text += f"\n`sparsebench -m +table={table}` will judge:\n\n"
        text += "".join(f"- {plain(claim)}\n" for claim in claims)
    return text


def _row(claim: dict[str, Any]) -> str:
    verdict, seeds = claim["verdict"], claim["seeds_needed"]
    difference = "-" if claim["difference"] is None else f"{claim['difference']:+.3g}"
    if claim["interval"]:
        difference += " [{:+.3g}, {:+.3g}]".format(*claim["interval"])
    cells = (
        claim["claim"],
        f"**{verdict}**" + (f" (about {seeds} seeds would decide)" if seeds else ""),
        difference,
        claim["n"],
        f"{claim['table']}, {claim['scale']}",
        claim["source"],
    )
    return row(cells)
