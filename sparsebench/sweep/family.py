"""Names of many cells that differ in plain values only, without composing each of them.

A plan of thousands of cells would take minutes if each were composed and checked. Here each
value is put into one config of the family once, which converts and checks it; a cell's name
follows from its values.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from sparsebench.config.check import check
from sparsebench.config.identity import names, shown, significance, significant, stem

#: Keys by which more of a run changes than its name.
OTHERS = ("epochs", "runs", "force", "seed", "data.train_size", "data.subset", "method.sparse")


class Family:
    """Cells that choose the same groups and set the same keys."""

    def __init__(self, cfg: DictConfig, lines: Mapping[str, str]) -> None:
        """Take the first of them.

        Args:
            cfg: its config.
            lines: its overrides of values, by key.
        """
        self._cfg = copy.deepcopy(cfg)
        self._lines = dict(lines)
        self._values = significant(cfg)
        self._matters = significance(cfg)
        self._stem = stem(cfg)
        self._shown, self._number = shown(cfg)
        self._read = _referred(OmegaConf.to_container(cfg, resolve=False))
        self._converted: dict[str, Any] = {}

    def names(self, overrides: Mapping[str, Override], seeds: Sequence[int]) -> list[str] | None:
        """Names of the runs of another cell by seed; None if only composing it can tell.

        Raises:
            UserError: a value is not allowed.
        """
        values = dict(self._values)
        number = self._number
        for key, override in overrides.items():
            line = override.input_line or ""
            if line == self._lines.get(key):
                continue
            if line not in self._converted:
                if not self._plain(key, override):
                    return None
                self._converted[line] = self._convert(key, override.value())
            value = self._converted[line]
            values.pop(key, None)
            if self._matters(key, value):
                values[key] = value
            if key == self._shown:
                number = value
        return names(self._stem, number, values, seeds)

    def _plain(self, key: str, override: Override) -> bool:
        """Whether nothing of the config but this key changes with it."""
        if key in OTHERS or key.rpartition(".")[2] == "name" or key.count(".") > 1:
            return False
        if override.is_add() or override.is_force_add() or override.is_delete():
            return False
        return (
            not isinstance(override.value(), dict | list) and key.split(".")[-1] not in self._read
        )

    def _convert(self, key: str, value: Any) -> Any:
        """The value as the schema has it, checked with all other values of the first cell."""
        before = OmegaConf.select(self._cfg, key)
        OmegaConf.update(self._cfg, key, value)
        try:
            check(self._cfg)
            return OmegaConf.select(self._cfg, key)
        finally:
            OmegaConf.update(self._cfg, key, before)


def _referred(config: Any) -> set[str]:
    """All words that stand in interpolations."""
    if isinstance(config, dict):
        return set().union(*map(_referred, config.values()))
    if isinstance(config, list):
        return set().union(*map(_referred, config))
    found = re.findall(r"\$\{[^}]*\}", config) if isinstance(config, str) else []
    return {word for text in found for word in re.findall(r"\w+", text)}
