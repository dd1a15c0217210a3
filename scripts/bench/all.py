"""All benchmarks, one after the other: make bench."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

for name in (
    "command_line",
    "step",
    "methods",
    "data",
    "memory",
    "whole_run",
    "sweep",
    "table",
    "llm",
    "continual",
):
    print(f"== {name}", flush=True)
    subprocess.run([sys.executable, f"{name}.py"], cwd=Path(__file__).parent, check=True)
