"""Where things are: the shipped configs, and the folders of runs."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import sparsebench


@cache
def config_folder() -> Path:
    """The shipped configs: inside the installed package, or beside it in a checkout."""
    package = Path(sparsebench.__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def config_files(group: str) -> list[str]:
    """Names of the options of a config group, sorted."""
    return sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))
