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


@cache
def methods(base: str = "composed") -> list[str]:
    """Names of the methods of one family, sorted.

    Args:
        base: what their YAMLs begin from, at first or by another: ``composed`` for methods that
            train, ``pruner`` for those that prune a trained language model.
    """
    return [name for name in config_files("method") if _base(name) == base]


def _base(name: str) -> str:
    """What a method's YAML begins from in the end."""
    import yaml

    path = config_folder() / "method" / f"{name}.yaml"
    if not path.exists():
        return name
    defaults = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("defaults", [])
    first = next((entry for entry in defaults if isinstance(entry, str) and entry != "_self_"), "")
    return _base(first) if first and first != name else first
