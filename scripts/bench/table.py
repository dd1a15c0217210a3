"""A table of 10,000 runs: its plan, and all its files from the results of the runs.

    python scripts/bench/table.py [RUNS]

Made-up results in a temporary folder, with the layers and curves of a real run of an MLP. The
plan is the command's own time from start to end. The table and the report are made in a process
of their own, whose largest memory is told.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS, COLUMNS = 25, 20
TABLE = """
name: big
title: Ten thousand runs
scales: {{quick: {{setup: made-up results}}}}
rows: {{key: method, values: [{rows}]}}
columns: {{key: sparsity, values: [{columns}]}}
overrides: [model=mlp, data=digits, epochs=30]
seeds: {seeds}
metric:
  - {{key: test/accuracy, format: .2f, factor: 100, better: max}}
  - {{key: flops/inference_relative, format: .3f, summary: range}}
picture: {{x: sparsity, y: test/accuracy, series: method}}
claims:
  - id: one
    claim: The first row is better than the second
    source: nowhere, it is a benchmark
    terms: [{{row: r0, column: 0.5}}, {{row: r1, column: 0.5, weight: -1}}]
"""


def command(*words: str) -> list[str]:
    """The command line of this package."""
    code = (
        "import resource, sys; from sparsebench.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    return [sys.executable, "-c", code, *words]


def timed(words: list[str], folder: Path) -> tuple[float, float]:
    """Seconds and MB of a command."""
    began = time.perf_counter()
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{' '.join(words[2:])}: {done.stderr[-2000:]}")
    return seconds, int(done.stderr.split()[-1]) / 1024


def write_table(folder: Path, seeds: int) -> None:
    """The YAML of the table."""
    rows = ", ".join(
        f"{{value: rigl, label: r{i}, overrides: [method.drop_fraction={0.02 + 0.03 * i:.2f}]}}"
        for i in range(ROWS)
    )
    columns = ", ".join(f"{0.5 + 0.02 * j:.2f}" for j in range(COLUMNS))
    (folder / "own" / "table").mkdir(parents=True)
    text = TABLE.format(rows=rows, columns=columns, seeds=seeds)
    (folder / "own" / "table" / "big.yaml").write_text(text)


def write_results(folder: Path, like: Path) -> int:
    """A result for each run of the plan, after the model of a real one."""
    code = """
import sys
from hydra.core.global_hydra import GlobalHydra
from sparsebench.sweep import sweeper, plan
plan.show_plan = lambda grid, cells, compose: print(*cells.runs, sep="\\n")
from sparsebench.cli import main
main(sys.argv[1:])
"""
    words = ["-m", "--config-dir", "own", "+table=big", "table.plan=true"]
    names = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.split()
    result = json.loads((like / "result.json").read_text())
    curves = (like / "metrics.csv").read_bytes()
    for number, name in enumerate(names):
        run = folder / "runs" / name
        run.mkdir(parents=True)
        result["identity"] = name
        result["metrics"]["test/accuracy"] = 0.9 + (number * 7919 % 1000) / 10000
        (run / "result.json").write_text(json.dumps(result, indent=2))
        (run / "metrics.csv").write_bytes(curves)
    return len(names)


def main() -> None:
    """Make the results, time, print."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_table(folder, max(1, runs // (ROWS * COLUMNS)))
        subprocess.run(
            command("model=mlp", "data=digits", "epochs=30", "quiet=true", "runs=like"),
            cwd=folder,
            check=True,
            capture_output=True,
        )
        words = ["-m", "--config-dir", "own", "+table=big"]
        plan, _ = timed(command(*words, "table.plan=true"), folder)
        count = write_results(folder, next((folder / "like").iterdir()))
        planned, _ = timed(command(*words, "table.plan=true"), folder)
        seconds, memory = timed(command(*words), folder)
        size = (folder / "results" / "big" / "quick" / "report.html").stat().st_size / 1e6
    print(f"{count:,} runs; targets: plan 3 s, table and report 10 s and 1,000 MB")
    print(f"plan, nothing done: {plan:.1f} s; all done: {planned:.1f} s")
    print(f"table and report: {seconds:.1f} s, {memory:.0f} MB (report.html {size:.1f} MB)")
    print(f"this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
