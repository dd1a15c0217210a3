"""The other processes of a run on several devices, each a rank of the same config.

Lightning would start them by repeating the command line, which in a sweep is the whole
sweep. Here each is ``python -m sparsebench.training.ranks <config.yaml>``. Where torchrun or
a cluster has started the ranks already (``LOCAL_RANK`` is set), nothing is started.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from sparsebench.errors import bad_value


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
    """Run the other ranks beside this one, and end them with it."""
    if cfg.trainer.devices == 1 or "LOCAL_RANK" in os.environ:
        yield
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    command = [sys.executable, "-m", "sparsebench.training.ranks", str(folder / "config.yaml")]
    log = (folder / "ranks.log").open("ab")
    others = [
        subprocess.Popen(
            command, env={**os.environ, **shared, "LOCAL_RANK": str(rank)}, stdout=log, stderr=log
        )
        for rank in range(1, cfg.trainer.devices)
    ]
    before = dict(os.environ)
    os.environ.update(shared, LOCAL_RANK="0")
    try:
        yield
        for process in others:
            process.wait(timeout=60)
    finally:
        for process in others:
            process.kill()
            process.wait()
        log.close()
        _leave_group()
        os.environ.clear()
        os.environ.update(before)


def _leave_group() -> None:
    """A process that goes on to other runs must not look distributed to them."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def main(path: str) -> None:
    """One of the other ranks: the same run, which writes nothing."""
    from sparsebench.tasks import classification

    cfg = OmegaConf.load(path)
    assert isinstance(cfg, DictConfig)
    classification.run(cfg, Path(path).parent, classification.prepare(cfg))


if __name__ == "__main__":
    main(sys.argv[1])
