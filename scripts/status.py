"""results/STATUS.md: what has been shown for each method, and what became of each claim.

    python scripts/status.py

Runs the conformance suite and counts its cases by method; verdicts are those of the
``claims.json`` files under ``results/<table>/<scale>/``.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sparsebench.config.paths import config_files, config_folder
from sparsebench.files import write_text

ROOT = Path(__file__).parents[1]
HEAD = """# Status

Made by `make status`: it runs the conformance suite (exact counts at each step, absent weights
and their optimizer state zero, resume bitwise, equal seeds bitwise, over three optimizers and four
networks) and gathers the verdicts of the tables under `results/`. A dash is a claim not tested yet.
A verdict of a small scale speaks of that scale only: it is no reproduction of a published figure.

| method | what | implemented | conformance | small scale | paper scale |
| --- | --- | --- | --- | --- | --- |
"""


class Tally:
    """Counts the cases of each method that passed, and all of them."""

    def __init__(self) -> None:
        self.method: dict[str, str] = {}
        self.passed: Counter[str] = Counter()
        self.total: Counter[str] = Counter()

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Remember which case is about which method."""
        for item in items:
            self.method[item.nodeid] = item.callspec.params["name"]

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count a case once it has run."""
        if report.when == "call":
            name = self.method[report.nodeid]
            self.total[name] += 1
            self.passed[name] += report.passed


CLAIMS = """
## Claims

Paired seeds, Holm's correction over the claims of a table, 95 % intervals; the difference is in
the unit of the table. `inconclusive` with a number says how many seeds would about decide.

| table | claim | verdict | difference | n | source |
| --- | --- | --- | --- | --- | --- |
"""


def claims() -> list[tuple[Path, dict[str, Any]]]:
    """All claims of all tables, each with the folder of its table."""
    return [
        (path.parent, claim)
        for path in sorted((ROOT / "results").glob("*/*/claims.json"))
        for claim in json.loads(path.read_text())
    ]


def by_method(paper: bool) -> dict[str, str]:
    """Counts of the verdicts by the method their claim speaks for, at paper scale or below."""
    found: dict[str, Counter[str]] = {}
    for folder, claim in claims():
        if (folder.name == "paper") == paper:
            found.setdefault(claim["method"], Counter())[claim["verdict"]] += 1
    return {
        method: ", ".join(f"{number} {verdict}" for verdict, number in sorted(count.items()))
        for method, count in found.items()
    }


def claim_line(folder: Path, claim: dict[str, Any]) -> str:
    """A row of the table of claims."""
    where = folder.relative_to(ROOT / "results").as_posix()
    verdict = claim["verdict"]
    if claim["seeds_needed"]:
        verdict += f" ({claim['seeds_needed']} seeds)"
    difference = "-" if claim["difference"] is None else f"{claim['difference']:+.3g}"
    if claim["interval"]:
        low, high = claim["interval"]
        difference += f" [{low:+.3g}, {high:+.3g}]"
    text, source = (claim[key].replace("|", "\\|") for key in ("claim", "source"))
    fields = (f"[{where}]({where}/table.md)", text, verdict, difference, claim["n"], source)
    return f"| {' | '.join(map(str, fields))} |\n"


def main() -> None:
    """Run the suite and write the file."""
    tally = Tally()
    suite = str(ROOT / "tests" / "test_conformance.py")
    pytest.main([suite, "-q", "-p", "no:cacheprovider"], plugins=[tally])
    small, paper = by_method(paper=False), by_method(paper=True)
    lines = []
    for name in config_files("method"):
        text = (config_folder() / "method" / f"{name}.yaml").read_text()
        about = text.splitlines()[0].lstrip("# ")
        cells = (
            f"`{name}`",
            about,
            "yes",
            f"{tally.passed[name]} of {tally.total[name]}",
            small.get(name, "-"),
            paper.get(name, "-"),
        )
        lines.append("| " + " | ".join(cells) + " |\n")
    write_text(
        ROOT / "results" / "STATUS.md",
        HEAD + "".join(lines) + CLAIMS + "".join(claim_line(*one) for one in claims()),
    )


if __name__ == "__main__":
    main()
