"""The other processes of a run on several devices, each a rank of the same config.

Lightning would start them by repeating the command line, which in a sweep is the whole
sweep. Here each is ``python -m sparsebench.tasks.rank <config.yaml>``. Where torchrun or
a cluster has started the ranks already (``LOCAL_RANK`` is set), nothing is started.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from sparsebench.errors import bad_value

#: Set where we started the ranks ourselves: the pipe on which they say that they are ready.
OURS = "SPARSEBENCH_READY"


def local_rank() -> int:
    """This process's rank on its machine; 0 where there is but one."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def check_devices(cfg: DictConfig) -> None:
    """Refuse devices that are not here, and more processes than make sense.

    Raises:
        UserError: with what there is.
    """
    import torch

    wanted, kind = cfg.trainer.devices, cfg.trainer.accelerator
    gpus = torch.cuda.device_count()
    if kind in ("gpu", "cuda") and not gpus:
        raise bad_value("trainer.accelerator", kind, "there is no GPU here; 'cpu' or 'auto' work")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise bad_value("trainer.accelerator", kind, "there is none here; 'cpu' or 'auto' work")
    on_gpu = kind != "cpu" and gpus > 0
    there = gpus if on_gpu else (os.cpu_count() or 1)
    if wanted > there:
        what = "GPUs" if on_gpu else "cores, and each process needs one"
        raise bad_value("trainer.devices", wanted, f"there are {there} {what}")
    if cfg.trainer.precision == "16" and not on_gpu:
        raise bad_value("trainer.precision", "16", "needs a GPU; here '32', '64' and 'bf16' work")


@contextmanager
def ranks(cfg: DictConfig, folder: Path) -> Iterator[None]:
    """Run the other ranks beside this one, and end them with it.

    Raises:
        RuntimeError: one of them died before training began.
    """
    if cfg.trainer.devices == 1 or "LOCAL_RANK" in os.environ:
        yield
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ready, told = os.pipe()
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "NODE_RANK": "0",
        OURS: str(told),
    }
    log = (folder / "ranks.log").open("ab")
    others = [
        subprocess.Popen(
            [sys.executable, "-m", "sparsebench.tasks.rank", str(folder / "config.yaml")],
            env={**os.environ, **shared, "LOCAL_RANK": str(rank)},
            stdout=log,
            stderr=log,
            pass_fds=(told,),
        )
        for rank in range(1, cfg.trainer.devices)
    ]
    before = dict(os.environ)
    os.environ.update(shared, LOCAL_RANK="0")
    try:
        _wait(others, ready, folder)
        yield
        for process in others:
            process.wait(timeout=60)
    finally:
        for process in others:
            process.kill()
            process.wait()
        for handle in (ready, told):
            os.close(handle)
        log.close()
        leave_group()
        os.environ.clear()
        os.environ.update(before)


def _wait(others: list[subprocess.Popen[bytes]], ready: int, folder: Path) -> None:
    """Wait until all ranks are prepared: one that died would be waited for by the others."""
    missing = len(others)
    while missing:
        if select.select([ready], [], [], 0.1)[0]:
            missing -= len(os.read(ready, missing))
        for rank, process in enumerate(others, start=1):
            if process.poll() is not None:
                lines = (folder / "ranks.log").read_text(errors="replace").splitlines() or [""]
                raise RuntimeError(f"rank {rank} ended with {process.returncode}: {lines[-1]}")


def leave_group() -> None:
    """A process that goes on to other runs must not look distributed to them."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
