"""Tasks: what is done with a model; each module has ``prepare(cfg)`` and ``run(...)``.

One that trains is a subclass of :class:`sparsebench.tasks.task.Task`. To add a task, write a
module here, give it a line below and a YAML in ``configs/task``.
"""

from __future__ import annotations

import importlib
from typing import Any

#: Names of all tasks, which are those of their modules.
TASKS = (
    "classification",
    "profile",
    "feature_selection",
    "recommend",
    "forecast",
    "dynamics",
    "gates",
    "compress",
    "continual",
    "prune_llm",
    "train_llm",
)


def load(name: str) -> Any:
    """The module of a task; torch is loaded with it."""
    return importlib.import_module(f"sparsebench.tasks.{name}")
