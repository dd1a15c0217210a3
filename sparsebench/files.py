"""Files that are whole or not there at all."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file beside its place, force it to the disk, then rename it into place.

    Args:
        path: where the file shall be; its folder must exist.
        write: writes the content to the open file it is given.

    Raises:
        OSError: the disk is full or the folder can't be written; what was there is intact.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


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
    import sys

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
