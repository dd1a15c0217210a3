"""Compose a config from overrides, as the command line does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from sparsebench.config.paths import config_folder
from sparsebench.config.refusal import refusal
from sparsebench.config.schema import register
from sparsebench.config.words import spelled


def compose(overrides: Sequence[str] = (), folder: str | None = None) -> DictConfig:
    """The config that these overrides of the shipped defaults stand for.

    Args:
        overrides: as on the command line.
        folder: of config groups of the user's own, beside the shipped ones.

    Raises:
        UserError: an option, key or value that does not exist.
    """
    register()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            own = [f"hydra.searchpath=['file://{Path(folder).absolute()}']"] if folder else []
            return hydra_compose("config", overrides=[*own, *map(spelled, overrides)])
    except Exception as error:
        told = refusal(error, overrides)
        if told is None:
            raise
        raise told from None
