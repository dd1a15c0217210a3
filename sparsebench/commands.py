"""``sparsebench list`` and ``sparsebench where``: names and places, without training."""

from __future__ import annotations

from fnmatch import fnmatchcase

from sparsebench.config.paths import config_files, config_folder
from sparsebench.errors import UserError, bad_value

GROUPS = {"methods": "method", "models": "model", "data": "data", "tables": "table"}


def list_names(words: list[str]) -> int:
    """Print the options of a group, with the first line of each file; a pattern filters."""
    if not words or words[0] not in GROUPS or len(words) > 2:
        raise bad_value("list", " ".join(words), f"one of {', '.join(GROUPS)}, then a pattern", GROUPS)
    group = GROUPS[words[0]]
    pattern = words[1] if len(words) > 1 else "*"
    names = [name for name in config_files(group) if fnmatchcase(name, pattern)]
    if not names:
        raise bad_value(f"list {words[0]}", pattern, "no name matches", config_files(group))
    width = max(map(len, names))
    for name in names:
        text = (config_folder() / group / f"{name}.yaml").read_text()
        about = text.splitlines()[0].lstrip("# ") if text.startswith("#") else ""
        print(f"{name:{width}}  {about}".rstrip())
    return 0


def where(overrides: list[str]) -> int:
    """Print the folder of the run that the overrides stand for."""
    from sparsebench.config.check import check
    from sparsebench.config.compose import compose
    from sparsebench.config.identity import run_folder

    if any(word.startswith("-") for word in overrides):
        raise UserError("where: takes overrides only, such as method=rigl sparsity=0.9")
    cfg = compose(overrides)
    check(cfg)
    print(run_folder(cfg).resolve())
    return 0
