"""The sparse-training library: plain torch, usable alone in any loop.

A method (:class:`Composed`) answers what is sparse and when; :class:`Session` puts it to
work on a model and its optimizers. Names load on first use, so that the command line can
read the specifications without importing torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = {
    "Composed": "composed",
    "Masks": "masks",
    "Method": "method",
    "TrainState": "method",
    "Session": "session",
    "select": "selector",
    "MethodSpec": "spec",
    "DistributionSpec": "spec",
    "SelectorSpec": "spec",
    "StructureSpec": "spec",
    "register_optimizer": "optimizer_state",
}
__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'sparsebench.sparsity' has no attribute '{name}'")
    return getattr(importlib.import_module(f"sparsebench.sparsity.{_NAMES[name]}"), name)
