"""The language model that a config names, from its builder."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from omegaconf import DictConfig

from sparsebench.config.importing import resolve
from sparsebench.errors import UserError, bad_value
from sparsebench.llm.models import LanguageModel
from sparsebench.llm.recurrent import CharLSTM
from sparsebench.tasks.build import container, own_code


def language_model(cfg: DictConfig, width: float | None = None) -> LanguageModel:
    """Call the builder with ``path``, ``seed`` and its own ``args``.

    One that has a parameter ``outer`` gets the whole config, such as a model that is trained
    here first and has to find the same data.

    Args:
        cfg: the whole config.
        width: replaces ``model.width``, for baselines of matched size.

    Raises:
        UserError: an argument that the builder does not take, or whatever it refuses.
    """
    target = str(cfg.model["_target_"])
    builder: Any = resolve(target, "model._target_", list(cfg.allow))
    given = container(cfg.model)["args"]
    known = inspect.signature(builder).parameters
    free = any(p.kind is p.VAR_KEYWORD for p in known.values())
    for name in given:
        if name not in known and not free:
            allowed = f"not an option of '{cfg.model.name}'"
            raise bad_value(f"model.args.{name}", given[name], allowed, known)
    if "width" in known:
        given["width"] = width or given.get("width", cfg.model.width)
    elif width is not None or cfg.model.width != 1.0:
        what = f"model.width={cfg.model.width}" if width is None else f"method={cfg.method.name}"
        raise UserError(
            f"{what}: model={cfg.model.name} has no width to multiply or to narrow; "
            "model=char_lstm has, and model.args.hidden=... of others may say a size"
        )
    if "outer" in known:
        given["outer"] = cfg
    if "weights" in known:
        given["weights"] = cfg.model.weights
    elif cfg.model.weights != "memory":
        allowed = f"'{cfg.model.name}' is not read from a folder; memory"
        raise bad_value("model.weights", cfg.model.weights, allowed)
    with own_code("model._target_", target):
        language: LanguageModel = builder(path=cfg.model.path, seed=cfg.seed, **given)
    if cfg.task.name == "prune_llm" and isinstance(language.model, CharLSTM):
        raise UserError(
            f"model={cfg.model.name}: task=prune_llm prunes models of transformers; "
            "task=train_llm trains this one, under any method"
        )
    return language


def on_device(cfg: DictConfig, language: LanguageModel) -> LanguageModel:
    """Move the model to the GPU where the config wants it there."""
    if cfg.trainer.accelerator in ("gpu", "cuda") or (
        cfg.trainer.accelerator == "auto" and torch.cuda.is_available()
    ):
        if language.disk:
            language.disk.move(torch.device("cuda"))
        else:
            language.model.to("cuda")
    return language
