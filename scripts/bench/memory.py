"""Peak memory of masked training minus that of dense training, in bytes a sparse weight.

    python scripts/bench/memory.py

Each side trains an MLP of some 50 million weights in a process of its own.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

from common import RESULTS

CHILD = """
import resource, sys, torch
from torch import nn
from sparsebench import Session, library
from sparsebench.sparsity.topology import ItopTracker
width = 4096
model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
                      nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, foreach=False)
session, itop, initial = None, None, None
x, y = torch.randn(16384, width), torch.randint(10, (16384,))
if sys.argv[1] != "dense":
    method = library.method(sys.argv[1], sparsity=0.9, every="2it")
    session = Session(method, model, optimizer, total_steps=8, seed=0)
    itop, initial = ItopTracker(dict(session.masks.items())), session.masks.packed()
for _ in range(6):
    nn.functional.cross_entropy(model(x), y).backward()
    if session: session.after_backward()
    optimizer.step(); optimizer.zero_grad()
    if session and session.after_step(): itop.update(dict(session.masks.items()))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
      sum(p.numel() for p in model.parameters() if p.ndim > 1))
"""


def peak(method: str) -> tuple[int, int]:
    """Peak bytes of one training, and its number of sparse weights."""
    command = [sys.executable, "-c", CHILD, method]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(out[0]), int(out[1])


def main() -> None:
    """Measure and print."""
    lines = []
    for method in ("static", "set", "rigl"):
        extra = []
        for _ in range(3):
            dense, weights = peak("dense")
            extra.append((peak(method)[0] - dense) / weights)
        value, target = statistics.median(extra), 4.25
        met = "met" if value <= target else "MISSED"
        print(
            f"peak memory, {method} minus dense: {value:.2f} bytes a sparse weight  "
            f"target <= {target}  {met}"
        )
        lines.append(
            {"name": f"{method} minus dense, bytes a weight", "value": value, "target": target}
        )
    RESULTS.mkdir(parents=True, exist_ok=True)
    (Path(RESULTS) / "memory.json").write_text(json.dumps(lines, indent=2) + "\n")


if __name__ == "__main__":
    main()
