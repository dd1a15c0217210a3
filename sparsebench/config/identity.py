"""A run is its hyperparameters: the name of a run, made from what changes its result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sparsebench.config.schema import IGNORED, SCHEMA, Config
from sparsebench.llm.spec import FactorSpec

#: Keys that only mean something for a method that is sparse.
_SPARSE_ONLY = ("sparsity", "distribution", "structure", "selector")


def identity(cfg: DictConfig) -> str:
    """Name of the run that a config stands for, such as ``digits-mlp-rigl-0.9-1-3f9a2c81d0``.

    The hash covers all keys that can change the result and are not at their default.
    """
    return identities(cfg, [cfg.seed])[0]


def identities(cfg: DictConfig, seeds: Sequence[int]) -> list[str]:
    """Names of the runs that a config stands for with each of some seeds.

    Args:
        cfg: the config; nothing but its own key may depend on the seed.
        seeds: in place of the config's.
    """
    return names(stem(cfg), shown(cfg)[1], significant(cfg), seeds)


def stem(cfg: DictConfig) -> str:
    """What a person reads first in a name: task, data, model and method."""
    parts = [cfg.data.name, cfg.model.name, cfg.method.name]
    if cfg.task.name != Config().task.name:
        parts.insert(0, cfg.task.name)
    return "-".join(map(_word, parts))


def names(stem: str, number: float, values: Mapping[str, Any], seeds: Sequence[int]) -> list[str]:
    """Names by seed of the runs with some significant values."""
    label = f"{stem}-{_word(f'{number:g}')}"
    others = {key: value for key, value in values.items() if key != "seed"}
    default, found = Config().seed, []
    for seed in seeds:
        own = {} if seed == default else {"seed": seed}
        text = json.dumps({"schema": SCHEMA, "values": {**others, **own}}, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        found.append(f"{f'{label}-{seed}'[:100]}-{digest}")
    return found


def run_folder(cfg: DictConfig) -> Path:
    """Where the run lives."""
    return Path(cfg.runs).expanduser() / identity(cfg)


def _word(text: str) -> str:
    return "".join(c if c.isalnum() or c in "._" else "_" for c in text)


def significant(cfg: DictConfig) -> dict[str, Any]:
    """Flat keys and values that make the run what it is."""
    resolved = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(resolved, dict)
    matters = significance(cfg)
    flat = _flat({str(key): value for key, value in resolved.items()})
    return {key: value for key, value in flat if matters(key, value)}


def significance(cfg: DictConfig) -> Callable[[str, Any], bool]:
    """Whether a key with a value makes a run another: it can, and is not at its default."""
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
    sparse = cfg.method.get("sparse", True) and defaults["method"] is not FactorSpec
    dropped = IGNORED if sparse else (*IGNORED, *_SPARSE_ONLY)

    def matters(key: str, value: Any) -> bool:
        if any(key == d or key.startswith(f"{d}.") for d in dropped):
            return False
        return key not in known or bool(known[key] != value)

    return matters


def shown(cfg: DictConfig) -> tuple[str, float]:
    """The number in a run's name with its key: zeros, or what products save; dense has no key."""
    if OmegaConf.get_type(cfg, "method") is FactorSpec:
        return "method.compression", float(cfg.method.compression)
    return ("sparsity", float(cfg.sparsity)) if cfg.method.get("sparse", True) else ("", 0.0)


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
