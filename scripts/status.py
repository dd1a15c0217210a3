"""results/STATUS.md: what has been shown for each method.

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


def verdicts(scale: str) -> dict[str, list[str]]:
    """Verdicts of the tables of a scale, by the method their claim is about."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "results").glob(f"*/{scale}/claims.json")):
        for claim in json.loads(path.read_text()):
            found.setdefault(claim.get("method", ""), []).append(claim["verdict"])
    return found


def main() -> None:
    """Run the suite and write the file."""
    tally = Tally()
    suite = str(ROOT / "tests" / "test_conformance.py")
    pytest.main([suite, "-q", "-p", "no:cacheprovider"], plugins=[tally])
    small, paper = verdicts("quick"), verdicts("paper")
    lines = []
    for name in config_files("method"):
        text = (config_folder() / "method" / f"{name}.yaml").read_text()
        about = text.splitlines()[0].lstrip("# ")
        cells = (
            f"`{name}`",
            about,
            "yes",
            f"{tally.passed[name]} of {tally.total[name]}",
            ", ".join(small.get(name, [])) or "-",
            ", ".join(paper.get(name, [])) or "-",
        )
        lines.append("| " + " | ".join(cells) + " |\n")
    write_text(ROOT / "results" / "STATUS.md", HEAD + "".join(lines))


if __name__ == "__main__":
    main()
