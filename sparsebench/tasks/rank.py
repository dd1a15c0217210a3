"""One of the other processes of a run on several devices: the same run, which writes nothing.

Started by :mod:`sparsebench.training.ranks` as ``python -m sparsebench.tasks.rank <config.yaml>``.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from sparsebench.tasks import load
from sparsebench.training.ranks import OURS, leave_group


def main(path: str) -> None:
    """Prepare, tell the first rank, and run."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    cfg = OmegaConf.load(path)
    assert isinstance(cfg, DictConfig)
    torch.set_num_threads(cfg.trainer.threads or torch.get_num_threads())
    task = load(cfg.task.name)
    prepared = task.prepare(cfg)
    os.write(int(os.environ[OURS]), b".")
    task.run(cfg, Path(path).parent, prepared)
    leave_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # native threads that outlive the interpreter's end would abort it


def _end_with(parent: int) -> None:
    """A rank whose first process was killed has nobody left to train with."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
