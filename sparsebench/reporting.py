"""What one run says on the screen: its figures, and last the path of its result.json."""

from __future__ import annotations

import sys
from typing import Any

from omegaconf import DictConfig

from sparsebench.config.identity import run_folder
from sparsebench.result import NAME

SHOWN = ("test/accuracy", "nonzeros", "sparsity", "flops/inference_relative",
         "flops/training_relative", "seconds/training")  # fmt: skip


def run_and_report(cfg: DictConfig) -> tuple[int, float | None]:
    """Run, print, and give the exit code and the test accuracy."""
    from sparsebench.run import run

    result = run(cfg)
    metrics: dict[str, Any] = result["metrics"]
    if result["status"] != "finished":
        text = f"{result['identity']} {result['status']}: {result.get('error', '')}"
        print(f"sparsebench: {text}", file=sys.stderr)
    elif not cfg.quiet:
        print("  ".join(f"{k}={metrics[k]:.6g}" for k in SHOWN if metrics.get(k) is not None))
    print((run_folder(cfg) / NAME).resolve(), flush=True)
    return int(result["status"] != "finished"), metrics.get("test/accuracy")
