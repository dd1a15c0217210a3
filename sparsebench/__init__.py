"""sparsebench: config-driven experiments in sparse training, with figures that can be trusted.

As a library: ``from sparsebench import Sparsify, Session, rigl`` (any method of
``configs/method`` by its name). Names load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["Session", "Sparsify", "method"]


def __getattr__(name: str) -> Any:
    if name == "Sparsify":
        from sparsebench.training.sparsify import Sparsify

        return Sparsify
    if name == "Session":
        from sparsebench.sparsity.session import Session

        return Session
    if name.startswith("_"):
        raise AttributeError(name)
    # "from sparsebench import library" would ask this very function for it first
    return getattr(import_module("sparsebench.library"), name)
