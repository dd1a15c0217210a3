"""What one run says on the screen: its figures, and last the path of its result.json."""

from __future__ import annotations

import sys
from typing import Any

from omegaconf import DictConfig

from sparsebench.config.identity import run_folder
from sparsebench.result import NAME

SHOWN = ("test/accuracy", "test/precision", "test/recall", "test/ndcg",
         "nonzeros", "sparsity", "flops/inference_relative",
         "flops/training_relative", "seconds/training")  # fmt: skip


def run_and_report(cfg: DictConfig) -> tuple[int, float | None]:
    """Run, print, and give the exit code and the test accuracy."""
    from sparsebench.run import follows, run

    result = run(cfg)
    metrics: dict[str, Any] = result["metrics"]
    if follows(cfg):  # the first rank tells
        return int(result["status"] != "finished"), None
    if result["status"] != "finished":
        text = f"{result['identity']} {result['status']}: {result.get('error', '')}"
        print("sparsebench:", " ".join(text.split()), file=sys.stderr)
    elif not cfg.quiet:
        if cfg.task.name == "profile":
            print_layers(result["layers"])
        shown = [*(key for key in metrics if key.startswith("perplexity")), *SHOWN]
        print("  ".join(f"{k}={_short(metrics[k])}" for k in shown if metrics.get(k) is not None))
    print((run_folder(cfg) / NAME).resolve(), flush=True)
    return int(result["status"] != "finished"), metrics.get("test/accuracy")


def _short(value: float) -> str:
    """Six digits of a measured number, all of a count."""
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def print_layers(layers: dict[str, Any]) -> None:
    """A table by layer: shape, weights kept, sparsity, FLOPs."""
    from rich.console import Console
    from rich.table import Table

    table = Table("layer", "shape", box=None, header_style="bold")
    for title in ("weights", "non-zeros", "sparsity", "FLOPs", "of dense"):
        table.add_column(title, justify="right")
    # JSON sorts its keys: "order" has the order of the network
    for name, layer in sorted(layers.items(), key=lambda item: item[1].get("order", 0)):
        table.add_row(
            name,
            "x".join(map(str, layer["shape"])),
            f"{layer['weights']:,}",
            f"{layer['nonzeros']:,}",
            f"{layer['sparsity']:.4f}",
            f"{layer['flops']:.3e}",
            f"{layer['flops'] / max(layer['flops_dense'], 1):.3f}",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)
