"""Files that are whole or not there at all."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from sparsebench.errors import UserError


class _Measured(io.FileIO):
    """A file that, once the disk refuses, only counts what it would have needed."""

    refused: OSError | None = None
    size = 0

    def write(self, data: Any) -> int:
        """Write, or count."""
        count = memoryview(data).nbytes
        if self.refused is None:
            try:
                count = super().write(data) or 0
            except OSError as error:
                self.refused = error
        self.size += count
        return count


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file beside its place, force it to the disk, then rename it into place.

    Args:
        path: where the file shall be; its folder must exist.
        write: writes the content to the open file it is given.

    Raises:
        UserError: the disk is full or the folder can't be written; what was there is intact.
    """
    size = 0
    try:
        name = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        # not mkstemp, whose files nobody else may read
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            raw = _Measured(handle, "wb")
            with io.BufferedWriter(raw) as file:
                write(file)
                file.flush()
                size = raw.size
                if raw.refused:
                    raise raw.refused
                os.fsync(handle)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise _refused(path, size, error) from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _refused(path: Path, size: int, error: OSError) -> UserError:
    said = f"{path}: can't be written ({error.strerror})"
    with contextlib.suppress(OSError):
        said += f"; {size} bytes are needed, {shutil.disk_usage(path.parent).free} are free"
    return UserError(said)


def check_room(folder: Path, needed: int = 0) -> None:
    """Refuse a folder that can't be made or written to, or whose disk is too full.

    Args:
        folder: need not exist yet.
        needed: bytes that will be written.

    Raises:
        UserError: naming the folder.
    """
    folder = folder.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"runs={folder.parent}: '{there}' is a file, and a folder is needed")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"runs={folder.parent}: '{there}' can't be written to")
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(
            f"runs={folder.parent}: the disk is full: {free} bytes are free, and about {needed} "
            "are needed"
        )


def write_text(path: Path, text: str) -> None:
    """Write text atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: sorted keys, NaN refused."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any | None:
    """The content of a JSON file, or None if it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def set_aside(path: Path, why: str) -> Path:
    """Rename a damaged file so that nobody reads it again, and say so on stderr.

    Returns:
        The new name.
    """
    number = 0
    while (aside := path.with_name(f"{path.name}.damaged{number or ''}")).exists():
        number += 1
    path.rename(aside)
    print(f"sparsebench: {path} {why}; set aside as {aside.name}", file=sys.stderr)
    return aside


def sweep_leftovers(folder: Path) -> None:
    """Remove temporary files that a killed writer left."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)
