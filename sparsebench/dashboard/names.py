"""What a run is called in W&B, and what a sweep tells its runs; nothing heavy is imported."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sparsebench.config.schema import IGNORED

#: Longest tag that W&B takes.
LONGEST = 64


def logger_overrides(table_name: str, scale: str, given: Iterable[str] = ()) -> list[str]:
    """Overrides that put the runs of a table into one W&B group, tagged with its scale.

    They change no run's identity.

    Args:
        table_name: name of the table, or of the grid.
        scale: the table's scale; empty if it has none.
        given: overrides of the command line; a key that is among them stays the user's.
    """
    keys = {override.partition("=")[0].lstrip("+") for override in given}
    wanted = {"logger.group": json.dumps(table_name, ensure_ascii=False)}
    if scale:
        wanted["logger.tags"] = f"[{json.dumps(scale, ensure_ascii=False)}]"
    return [f"{key}={value}" for key, value in wanted.items() if key not in keys]


def init_arguments(config: Mapping[str, Any], identity: str) -> dict[str, Any]:
    """What ``wandb.init`` is told of a run; the same from a live run and from its files.

    Args:
        config: the resolved config as plain containers.
        identity: name of the run's folder.
    """
    logger = config["logger"]
    method, data, model = (config[key]["name"] for key in ("method", "data", "model"))
    return {
        "project": logger["project"],
        "entity": logger["entity"],
        "id": identity,
        "name": f"{method} {config['sparsity']:g} {model} {data} #{config['seed']}",
        "group": logger["group"] or _label(identity),
        "job_type": config["task"]["name"],
        "tags": _tags([method, data, model, *logger["tags"]]),
        "config": {**config, "cell": cell(config, identity)},
    }


def cell(config: Mapping[str, Any], identity: str) -> str:
    """A name that runs share if they differ in nothing but their seed and what can't matter."""
    kept = {k: v for k, v in _flat(config) if k != "seed" and not _ignored(k)}
    text = json.dumps(kept, sort_keys=True, default=str)
    return f"{_label(identity)}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _label(identity: str) -> str:
    """An identity without seed and hash."""
    return identity.rsplit("-", 2)[0]


def _tags(words: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(str(word)[:LONGEST] for word in words if str(word)))


def _ignored(name: str) -> bool:
    return any(name == key or name.startswith(f"{key}.") for key in IGNORED)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found
