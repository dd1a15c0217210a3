"""``sparsebench list`` and ``sparsebench where``: names and places, without training."""

from __future__ import annotations

import argparse
import re
from fnmatch import fnmatchcase
from pathlib import Path

from sparsebench.config.paths import config_files, config_folder
from sparsebench.errors import UserError, bad_value

GROUPS = {"methods": "method", "models": "model", "data": "data", "tables": "table"}


def list_names(words: list[str]) -> int:
    """Print the options of a group, with the first line of each file; a pattern filters."""
    if not words or words[0] not in GROUPS or len(words) > 2:
        raise bad_value(
            "list", " ".join(words), f"one of {', '.join(GROUPS)}, then a pattern", GROUPS
        )
    group = GROUPS[words[0]]
    pattern = words[1] if len(words) > 1 else "*"
    names = [name for name in config_files(group) if fnmatchcase(name, pattern)]
    if not names:
        raise bad_value(f"list {words[0]}", pattern, "no name matches", config_files(group))
    width = max(map(len, names))
    for name in names:
        text = (config_folder() / group / f"{name}.yaml").read_text(encoding="utf-8")
        comments = [line for line in text.splitlines() if re.match(r"#\s*[^@\s]", line)]
        about = comments[0].lstrip("# ") if comments else ""
        print(f"{name:{width}}  {about}".rstrip())
    return 0


def show_groups() -> int:
    """Print each config group with its options, as Hydra's help does."""
    print("Configuration groups (group=option); any key of --cfg job is set by key=value\n")
    for folder in sorted(path for path in config_folder().iterdir() if path.is_dir()):
        if names := config_files(folder.name):
            print(f"{folder.name}: {', '.join(names)}")
    return 0


def where(words: list[str]) -> int:
    """Print the folder of the run that the overrides stand for."""
    from sparsebench.config.check import check
    from sparsebench.config.compose import compose
    from sparsebench.config.identity import run_folder

    folder, overrides = _config_dir(words)
    if any(word.startswith("-") for word in overrides):
        raise UserError("where: takes overrides and --config-dir only, such as method=rigl seed=1")
    cfg = compose(overrides, folder)
    check(cfg)
    print(run_folder(cfg).resolve())
    return 0


def _config_dir(words: list[str]) -> tuple[str | None, list[str]]:
    """Take Hydra's ``--config-dir`` out of the words."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd")
    known, rest = parser.parse_known_args(words)
    folder = known.config_dir
    if folder is not None and not Path(folder).is_dir():
        raise UserError(f"--config-dir {folder}: there is no such folder")
    return folder, rest
