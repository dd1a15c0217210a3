"""Compose the cells of a grid as the launcher will, with Hydra's own parts, only faster.

Hydra resolves the defaults list of groups first and applies all other overrides in their order
afterwards. Cells that choose the same groups therefore share the first part.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, open_dict, read_write


class GridComposer:
    """From overrides to the config of one run, without Hydra's own part."""

    def __init__(self, config_loader: Any, master: DictConfig) -> None:
        """Take Hydra's loader, and the config that the command line alone gives."""
        self._loader = config_loader
        self._master = master
        self._of_groups = cache(self._compose)
        self._parsed = cache(self._parse)

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        """Compose.

        Raises:
            HydraException: as Hydra does.
        """
        parsed = [self._parsed(override) for override in overrides]
        groups = tuple(override.input_line for override, is_group in parsed if is_group)
        cfg = copy.deepcopy(self._of_groups(groups))
        others = [override for override, is_group in parsed if not is_group]
        ConfigLoaderImpl._apply_overrides_to_config(others, cfg)
        return cfg

    def split(self, overrides: Sequence[str]) -> tuple[tuple[str, ...], dict[str, Override]]:
        """The overrides that choose from groups, and the others by their keys."""
        parsed = [self._parsed(override) for override in overrides]
        groups = tuple(override.input_line or "" for override, is_group in parsed if is_group)
        return groups, {o.key_or_group: o for o, is_group in parsed if not is_group}

    def _compose(self, groups: tuple[str, ...]) -> DictConfig:
        cfg: DictConfig = self._loader.load_sweep_config(self._master, list(groups))
        with read_write(cfg), open_dict(cfg):
            del cfg["hydra"]
        return cfg

    def _parse(self, override: str) -> tuple[Override, bool]:
        """An override, and whether it chooses from a group, by Hydra's own rule."""
        parser = OverridesParser.create(config_loader=self._loader)
        parsed: Override = parser.parse_overrides([override])[0]
        chosen = self._loader.repository.group_exists(parsed.key_or_group)
        return parsed, chosen and not isinstance(parsed.value(), dict)
