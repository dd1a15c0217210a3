"""``sparsebench push``: build runs in W&B from their own files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from sparsebench.dashboard.client import View, first_line, history
from sparsebench.dashboard.record import Record, Unreadable, read_record
from sparsebench.errors import UserError, nearest


def push(words: Sequence[str]) -> int:
    """Push runs to W&B, or write them for ``wandb sync`` where there is no account.

    A run that W&B has already gets the rows it lacks, and its summary.

    Args:
        words: folders of runs or folders of such, ``--project`` and ``--entity``.

    Returns:
        0, or 1 if a run was left out.

    Raises:
        UserError: there is no such folder, or no run in it.
    """
    asked = _parse(words)
    folders = list(dict.fromkeys(run for place in asked.folders for run in _runs(Path(place))))
    if find_spec("wandb") is None:
        raise UserError("push: the package wandb is not installed; 'pip install wandb' does it")
    over = {k: v for k in ("project", "entity") if (v := getattr(asked, k)) is not None}
    left_out = 0
    for folder in folders:
        try:
            with _claimed(folder):
                print(_push(read_record(folder), over), flush=True)
        except Exception as error:  # one run must not keep the others back
            left_out += 1
            known = isinstance(error, Unreadable | UserError | TimeoutError)
            kind = "" if known else f"{type(error).__name__}: "
            print(f"sparsebench: {folder.name}: {kind}{first_line(error)}", file=sys.stderr)
    if left_out:
        print(f"sparsebench: {left_out} of {len(folders)} runs are not pushed", file=sys.stderr)
    return int(left_out > 0)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    def refuse(message: str) -> NoReturn:
        raise UserError(f"push: {message}; push RUN_FOLDER... [--project P] [--entity E]")

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.error = refuse  # type: ignore[method-assign]  # else it prints its usage
    parser.add_argument("folders", nargs="+", metavar="RUN_FOLDER")
    parser.add_argument("--project")
    parser.add_argument("--entity")
    return parser.parse_args(words)


def _runs(place: Path) -> list[Path]:
    """The run that a folder is, or the runs in it."""
    if not place.is_dir():
        beside = place.parent if place.parent.is_dir() else Path()
        names = [str(path) for path in beside.iterdir() if path.is_dir()]
        raise UserError(f"push {place}: there is no such folder{_near(place, names)}")
    if (place / "config.yaml").exists() or (place / "result.json").exists():
        return [place]
    found = sorted(path for path in place.iterdir() if (path / "config.yaml").exists())
    if not found:
        raise UserError(f"push {place}: there is no run in this folder")
    return found


def _near(place: Path, names: Iterable[str]) -> str:
    found = nearest(str(place), names)
    return f"; did you mean '{found}'?" if found else ""


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Hold a run's folder, unless it is running."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise UserError("is running; push it when it has ended") from None


def _push(record: Record, over: dict[str, str]) -> str:
    """Push one run; returns what to tell."""
    rows = history(record.rows, record.densities)
    config = {**record.config, "logger": {**record.config["logger"], **over}}
    view = View(config, record.folder, "auto")
    sent = view.log(rows)
    view.close(record.metrics, failed=record.status != "finished")
    why = f" ({view.why})" if view.why else ""
    where = (
        f"a new and complete record offline{why}; '{view.upload}' uploads"
        if view.offline
        else f"{sent} of {len(rows)} rows were new, {view.url}"
    )
    unfinished = " unfinished," if record.status == "unfinished" else ""
    return f"{record.folder.name}:{unfinished} {len(rows)} rows, {where}"
