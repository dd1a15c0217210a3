"""A run is its hyperparameters: the name of a run, made from what changes its result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sparsebench.config.schema import IGNORED, SCHEMA, Config

#: Keys that only mean something for a method that is sparse.
_SPARSE_ONLY = ("sparsity", "distribution", "structure", "selector")


def identity(cfg: DictConfig) -> str:
    """Name of the run that a config stands for, such as ``digits-mlp-rigl-0.9-1-3f9a2c81d0``.

    The hash covers all keys that can change the result and are not at their default.
    """
    text = json.dumps({"schema": SCHEMA, "values": significant(cfg)}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    parts = [cfg.data.name, cfg.model.name, cfg.method.name, f"{_sparsity(cfg):g}", str(cfg.seed)]
    if cfg.task.name != Config().task.name:
        parts.insert(0, cfg.task.name)
    label = "-".join("".join(c if c.isalnum() or c in "._" else "_" for c in p) for p in parts)
    return f"{label[:100]}-{digest}"


def run_folder(cfg: DictConfig) -> Path:
    """Where the run lives."""
    return Path(cfg.runs).expanduser() / identity(cfg)


def significant(cfg: DictConfig) -> dict[str, Any]:
    """Flat keys and values that make the run what it is."""
    resolved = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(resolved, dict)
    values = {str(key): value for key, value in resolved.items()}
    defaults = {
        "method": OmegaConf.get_type(cfg, "method"),
        **{f.name: OmegaConf.get_type(cfg, f.name) for f in fields(Config) if f.name != "method"},
    }
    known: dict[str, Any] = {}
    for key, kind in defaults.items():
        if is_dataclass(kind):
            assert isinstance(kind, type)
            known.update({f"{key}.{n}": v for n, v in _defaults(kind).items()})
        else:
            known[key] = _defaults(Config).get(key)
    dropped = IGNORED if values["method"].get("sparse", True) else (*IGNORED, *_SPARSE_ONLY)
    return {
        key: value
        for key, value in _flat(values)
        if not any(key == d or key.startswith(f"{d}.") for d in dropped)
        and (key not in known or known[key] != value)
    }


def _sparsity(cfg: DictConfig) -> float:
    return float(cfg.sparsity) if cfg.method.get("sparse", True) else 0.0


def _defaults(kind: type) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for spec in fields(kind):
        if spec.default is not MISSING:
            found[spec.name] = spec.default
        elif spec.default_factory is not MISSING:
            found[spec.name] = spec.default_factory()
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys with dots; open dictionaries (``args``, ``fixed``) stay whole values."""
    for key, value in values.items():
        if isinstance(value, Mapping) and not prefix:
            yield from _flat(value, f"{key}.")
        else:
            yield f"{prefix}{key}", value
