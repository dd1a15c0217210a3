"""What a result was made with: versions, machine, revision."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import sparsebench
from sparsebench.files import write_text

PACKAGES = ("sparsebench", "torch", "lightning", "hydra-core", "omegaconf", "torchvision", "timm",
            "datasets", "torchmetrics", "numpy", "scikit-learn", "mnist1d",
            "transformers")  # fmt: skip


def describe(folder: Path) -> dict[str, Any]:
    """Versions, machine and source revision; a dirty tree's diff is put into ``folder``."""
    import torch

    revision = _revision()
    if revision.get("diff"):
        write_text(folder / "source.diff", revision["diff"])
    return {
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerators": torch.cuda.device_count(),
        "revision": revision.get("commit"),
        "revision_diff": revision.get("digest"),
        "command": " ".join(sys.argv[1:]),
    }


@cache
def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@cache
def _revision() -> dict[str, str]:
    """Commit of the source tree, and its diff if it is dirty; empty where there is no git."""
    root = Path(sparsebench.__file__).parent.parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=20
        ).stdout

    try:
        if Path(git("rev-parse", "--show-toplevel").strip()) != root.resolve():
            return {}
        found = {"commit": git("rev-parse", "HEAD").strip()}
        if diff := git("diff", "HEAD", "--", "sparsebench", "configs"):
            found |= {"diff": diff, "digest": hashlib.sha256(diff.encode()).hexdigest()[:16]}
        return found
    except (OSError, subprocess.SubprocessError):
        return {}
