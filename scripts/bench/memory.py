"""Peak memory of masked training minus that of dense training, in bytes a sparse weight.

    python scripts/bench/memory.py

Each side trains an MLP of some 12 million weights in a process of its own.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from common import RESULTS

REPEATS = 2
CHILD = """
import resource, sys, torch
from torch import nn
from sparsebench import Session, library
from sparsebench.sparsity.topology import ItopTracker
small = nn.Linear(64, 64)  # so that both sides have loaded the same code
sgd = torch.optim.SGD(small.parameters(), lr=0.1, momentum=0.9)
small_method = library.method("rigl", sparsity=0.5, every="1it", end="100%")
first = Session(small_method, small, sgd, total_steps=9)
small(torch.randn(4, 64)).sum().backward()
first.after_backward(); sgd.step(); first.after_step()
ItopTracker(dict(first.masks.items()))
width = 2048
model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
                      nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, foreach=False)
session, itop, initial = None, None, None
x, y = torch.randn(4096, width), torch.randint(10, (4096,))
if sys.argv[1] != "dense":
    method = library.method(sys.argv[1], sparsity=0.9, every="2it")
    session = Session(method, model, optimizer, total_steps=6, seed=0)
    itop, initial = ItopTracker(dict(session.masks.items())), session.masks.packed()
for _ in range(3):
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
    # what is freed goes back at once, so that the peak is of memory in use
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    out = done.stdout.split()
    return int(out[0]), int(out[1])


def main() -> None:
    """Measure and print."""
    lines = []
    dense, weights = statistics.median(peak("dense")[0] for _ in range(REPEATS)), peak("dense")[1]
    for method in ("static", "set", "rigl"):
        extra = [(peak(method)[0] - dense) / weights for _ in range(REPEATS)]
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
