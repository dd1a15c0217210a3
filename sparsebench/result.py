"""result.json: the contract with every tool that reads runs."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from sparsebench.config.schema import SCHEMA
from sparsebench.files import read_json, set_aside, write_json

NAME = "result.json"
STATUSES = ("finished", "diverged", "failed")


def write_result(
    folder: Path,
    *,
    identity: str,
    status: str,
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
    metrics: Mapping[str, Any],
    **more: Any,
) -> Path:
    """Write ``result.json``, the last file of a run; its being there means the run has ended.

    Args:
        folder: the run's folder.
        identity: name of the run.
        status: ``finished``, ``diverged`` or ``failed``.
        config: the resolved config.
        environment: versions, machine, revision.
        metrics: flat names to numbers or strings; infinite and NaN values become null.
        **more: further top-level entries, such as ``layers``, ``notes`` or ``error``.
    """
    assert status in STATUSES
    path = folder / NAME
    content = {
        "schema": SCHEMA,
        "identity": identity,
        "status": status,
        "config": config,
        "environment": environment,
        "metrics": metrics,
        **more,
    }
    write_json(path, _finite(content))
    return path


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of a run, or None if it has none that can be used.

    A damaged file is set aside; one of another schema is left where it is, named and not used.
    """
    path = folder / NAME
    if not path.exists():
        return None
    content = read_json(path)
    if not isinstance(content, dict) or content.get("status") not in STATUSES:
        set_aside(path, "is damaged and counts as not there")
        return None
    if content.get("schema") != SCHEMA:
        _say_once(f"{path} is of schema {content.get('schema')}, not {SCHEMA}, and is not used")
        return None
    return content


def ended(result: Mapping[str, Any] | None) -> bool:
    """Whether a run needs no more work: it finished or diverged."""
    return result is not None and result["status"] != "failed"


@cache
def _say_once(text: str) -> None:
    print(f"sparsebench: {text}", file=sys.stderr)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
