"""One run, from a config to its result.json: check, claim, train or resume, record."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sparsebench.claim import Claimed, Lost, hold, living_owner
from sparsebench.config.check import check
from sparsebench.config.identity import run_folder
from sparsebench.errors import Diverged, Interrupted, UserError, bad_value
from sparsebench.files import check_room, sweep_leftovers, write_text
from sparsebench.result import NAME, ended, read_result, write_result
from sparsebench.signals import handling, stop_at_once
from sparsebench.tasks import TASKS, load

CHECKPOINTS = ("last.ckpt", "previous.ckpt", "fresh-last.ckpt")


def run(cfg: DictConfig, *, wait: bool = True) -> dict[str, Any]:
    """Do what the config asks for, unless it is done.

    Args:
        cfg: the composed config.
        wait: for another process that is doing it.

    Returns:
        The content of ``result.json``.

    Raises:
        UserError: the config, the data or the machine can't do it; nothing was written, or
            what was there before stands.
        Claimed: another process is doing it, and ``wait`` is false.
        Interrupted: a signal stopped it; the same call goes on.
    """
    check(cfg)
    if cfg.task.name not in TASKS:
        raise bad_value("task", cfg.task.name, f"one of {', '.join(TASKS)}", TASKS)
    folder = run_folder(cfg)
    if done := finished(cfg, folder):
        return done
    check_room(folder)
    if not wait and (owner := living_owner(folder)):
        raise Claimed(f"{folder} is already running ({owner})")
    try:
        return _run(cfg, folder, wait=wait)
    except Lost as lost:  # after a long sleep, say: now the other one is waited for
        print(f"sparsebench: {lost}", file=sys.stderr)
    return run(cfg, wait=wait)


def _run(cfg: DictConfig, folder: Path, *, wait: bool) -> dict[str, Any]:
    with handling(stop_at_once), _threads(cfg.trainer.threads):
        task = load(cfg.task.name)
        prepared = task.prepare(cfg)  # builds model, data and method: the last refusals come here
        check_room(folder, _bytes(getattr(prepared, "model", None)))
        if follows(cfg):
            return _follow(cfg, folder, task, prepared)
        with _claim(folder, wait=wait):
            if done := finished(cfg, folder):  # by another process, while we waited
                return done
            return _train(cfg, folder, task, prepared)


def follows(cfg: DictConfig) -> bool:
    """Whether this process is not the first rank of a run that torchrun started."""
    return cfg.trainer.devices > 1 and int(os.environ.get("LOCAL_RANK", "0")) > 0


def _follow(cfg: DictConfig, folder: Path, task: Any, prepared: Any) -> dict[str, Any]:
    """Take part in a run that the first rank records."""
    found = {"identity": folder.name, "status": "finished", "metrics": {}}
    try:
        return {**found, **task.run(cfg, folder, prepared)}
    except Diverged as error:
        return {**found, "status": "diverged", "error": str(error)}


def finished(cfg: DictConfig, folder: Path) -> dict[str, Any] | None:
    """The result of a run that needs no more work: finished or diverged, and not forced."""
    result = read_result(folder)
    return result if ended(result) and not cfg.force else None


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Compute with so many threads, and leave torch as it was."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _bytes(model: Any) -> int:
    """What two checkpoints of a model take: weights, two moments, and a little for the rest."""
    if model is None or any(p.is_meta for p in model.parameters()):
        return 0
    weights: int = sum(p.numel() * p.element_size() for p in model.parameters())
    return 2 * (3 * weights + 100_000)


def _train(cfg: DictConfig, folder: Path, task: Any, prepared: Any) -> dict[str, Any]:
    from sparsebench.environment import describe
    from sparsebench.sparsity.kind import kind_of

    sweep_leftovers(folder)
    if cfg.force and (folder / NAME).exists():  # else the forced run itself was interrupted
        _remove(folder, *CHECKPOINTS)
    _remove(folder, NAME, "error.txt")
    write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    record: dict[str, Any] = {
        "identity": folder.name,
        "config": OmegaConf.to_container(cfg, resolve=True),
        "environment": describe(folder),
    }
    if method := getattr(prepared, "method", None):
        record["kind"] = asdict(kind_of(method)) | getattr(prepared, "kind", {})
    try:
        outcome = task.run(cfg, folder, prepared)
        _remove(folder, *CHECKPOINTS[1:])
        write_result(folder, status="finished", **record, **outcome)
    except Diverged as error:
        metrics = {"diverged/step": error.step}
        _remove(folder, *CHECKPOINTS[1:])
        write_result(folder, status="diverged", metrics=metrics, error=str(error), **record)
    except (Interrupted, UserError, KeyboardInterrupt):
        raise
    except Exception as error:
        write_text(folder / "error.txt", traceback.format_exc())
        said = f"{type(error).__name__}: {error}"
        write_result(folder, status="failed", metrics={}, error=said, **record)
    result = read_result(folder)
    assert result is not None
    return result


def _remove(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)


@contextmanager
def _claim(folder: Path, *, wait: bool) -> Iterator[None]:
    """Hold the run's folder, see :func:`sparsebench.claim.hold`.

    If the run is refused after all before its first checkpoint, new folders vanish again.

    Raises:
        Claimed: another process has it, and ``wait`` is false.
        Lost: another process has taken it over.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    begun = False
    try:
        with hold(folder, wait=wait) as claim:
            begun = True
            try:
                yield
            except UserError:
                if not any((folder / name).exists() for name in CHECKPOINTS):
                    _undo(new, claim)
                raise
    except OSError as error:
        if begun:
            raise
        raise UserError(f"runs={folder.parent}: can't be written to ({error.strerror})") from error


def _undo(new: list[Path], claim: Path) -> None:
    """Remove the folders of a run that was refused, from the innermost, if nobody else is there.

    The claim goes last: without it another process may begin at once.
    """
    import shutil

    for path in new[:1]:
        for inside in [inside for inside in path.iterdir() if inside != claim]:
            if inside.is_dir():
                shutil.rmtree(inside, ignore_errors=True)
            else:
                inside.unlink(missing_ok=True)
        claim.unlink(missing_ok=True)
    for path in new:
        with contextlib.suppress(OSError):
            path.rmdir()
