"""Checks of a whole config, before anything is built; nothing here imports torch."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from sparsebench.config.idle import check_idle
from sparsebench.config.importing import check_allowed
from sparsebench.config.refusal import refusal
from sparsebench.config.rules import allowed
from sparsebench.config.schema import Config
from sparsebench.errors import UserError, bad_value
from sparsebench.llm.spec import FactorSpec, PrunerSpec
from sparsebench.sparsity.fields import check_field, check_fields
from sparsebench.sparsity.nm_rules import check_distribution, check_method, check_numbers, is_nm
from sparsebench.sparsity.spec import MethodSpec
from sparsebench.sparsity.time import Duration

#: Keys that more than one part may take from elsewhere: an import path has a dot.
KINDS = ("linear", "conv", "embedding", "sensor")


def check(cfg: DictConfig) -> None:
    """Refuse a config whose values are out of range or contradict each other.

    Raises:
        UserError: one line naming key, value given and what is allowed.
    """
    _check_keys(cfg)
    try:
        OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise refusal(error) or error from error
    for spec in fields(Config):
        value = _value(cfg, spec.name)
        kind = OmegaConf.get_type(cfg, spec.name)
        if is_dataclass(kind):
            check_fields(value, spec.name, kind)
        else:
            check_field(value, spec.name, spec.metadata)
    if not isinstance(cfg.method, DictConfig) or not cfg.method.get("name"):
        raise UserError(f"method={cfg.method}: a method is needed, with method.name in its YAML")
    if not cfg.runs:
        raise UserError("runs=: the folder that runs are kept in is needed")
    _check_family(cfg)
    _check_targets(cfg)
    _check_sparsity_scale(cfg)
    _check_data(cfg)
    _check_selector(cfg)
    check_idle(cfg)
    _check_pattern(cfg)
    _check_steps(cfg)


def _value(cfg: DictConfig, key: str) -> Any:
    try:
        return cfg[key]
    except ConfigKeyError as error:
        raise UserError(f"~{key}: the key can't be left out; {allowed(key)}") from error


def _check_keys(cfg: DictConfig) -> None:
    """Refuse keys that were added by ``+`` and that nobody would read."""
    known = [spec.name for spec in fields(Config)]
    for key in cfg:
        if key not in known:
            raise bad_value(str(key), OmegaConf.select(cfg, str(key)), "no such key", known)
        kind = OmegaConf.get_type(cfg, str(key))
        if is_dataclass(kind):
            names = [spec.name for spec in fields(kind)]
            for name in cfg[key]:
                if name not in names:
                    raise bad_value(f"{key}.{name}", cfg[key][name], "no such key", names)


def _check_family(cfg: DictConfig) -> None:
    """Methods and models of language models go with the task that prunes them, and only with it."""
    prunes = cfg.task.name == "prune_llm"
    kind = OmegaConf.get_type(cfg, "method")
    if prunes != (kind in (PrunerSpec, FactorSpec)):
        text = (
            "trains a network, and task=prune_llm prunes a trained one; it takes wanda, sparsegpt, "
            "magnitude and others"
            if prunes
            else "prunes a trained language model, which needs task=prune_llm"
        )
        raise UserError(f"method={cfg.method.name}: {text}")
    if kind is FactorSpec and cfg.sparsity != Config().sparsity:
        raise UserError(
            f"sparsity={cfg.sparsity:g}: has no effect with method={cfg.method.name}, which leaves "
            "no zeros; method.compression says how much storage it saves"
        )
    of_llm = str(cfg.model["_target_"]).startswith("sparsebench.llm.")
    takes = cfg.task.name in ("prune_llm", "train_llm")
    if takes and str(cfg.model["_target_"]).startswith("sparsebench.") and not of_llm:
        some = "model=smollm2_135m or model=hf model.path=FOLDER" if prunes else "model=char_gpt"
        raise UserError(
            f"model={cfg.model.name}: task={cfg.task.name} needs a language model, such as {some}"
        )
    if of_llm and not takes:
        raise UserError(
            f"model={cfg.model.name}: a language model needs task=prune_llm or task=train_llm"
        )


def _check_targets(cfg: DictConfig) -> None:
    """Import paths of classes and builders; only data may do without one."""
    for group, needed in (("model", True), ("data", False), ("method", "_target_" in cfg.method)):
        target = cfg[group].get("_target_")
        if target or needed:
            check_allowed(str(target), f"{group}._target_", list(cfg.allow))


def _check_sparsity_scale(cfg: DictConfig) -> None:
    if cfg.sparsity == 0 and cfg.method.get("shrink"):
        raise UserError("sparsity=0: method=small_dense needs a sparsity above 0 to be smaller")


def _check_data(cfg: DictConfig) -> None:
    data = cfg.data
    if data.train_size and cfg.batch_size > data.train_size:
        raise bad_value(
            "batch_size", cfg.batch_size, f"'{data.name}' has {data.train_size} images to train on"
        )
    if data.num_classes and cfg.model.num_classes and cfg.model.num_classes != data.num_classes:
        raise bad_value(
            "model.num_classes",
            cfg.model.num_classes,
            f"data '{data.name}' has {data.num_classes} classes (data.num_classes)",
        )
    if cfg.batch_size % (cfg.trainer.devices * cfg.trainer.accumulate):
        raise UserError(
            f"batch_size={cfg.batch_size}: it is the batch of one optimizer step and must divide by"
            f" trainer.devices={cfg.trainer.devices} x trainer.accumulate={cfg.trainer.accumulate}"
        )


def _check_selector(cfg: DictConfig) -> None:
    for kind in cfg.selector.kinds:
        if kind not in KINDS:
            raise bad_value("selector.kinds", kind, f"any of {', '.join(KINDS)}", KINDS)


def _check_pattern(cfg: DictConfig) -> None:
    """N:M says the sparsity, and needs a method that leaves groups whole."""
    if not is_nm(cfg.structure) or not cfg.method.get("sparse", True):
        return
    check_numbers(cfg.structure, cfg.sparsity)
    if OmegaConf.get_type(cfg, "method") is MethodSpec:
        check_method(cfg.method)
        check_distribution(cfg.distribution)


def _check_steps(cfg: DictConfig) -> None:
    """Where the size of the data is known, check the update window as it will be."""
    from sparsebench.sparsity.window import Window

    data = cfg.data
    for milestone in cfg.schedule.milestones:
        Duration.parse(milestone, "schedule.milestones")
    if OmegaConf.get_type(cfg, "method") is not MethodSpec or not data.train_size:
        return
    if cfg.task.name != "classification":
        return
    images = data.train_size
    if data.subset:
        images = round(data.subset * images) if data.subset <= 1 else int(data.subset)
    held = data.validation if data.validation > 1 else data.validation * images
    steps = math.floor((images - held) / cfg.batch_size)
    if steps < 1:
        raise bad_value(
            "batch_size", cfg.batch_size, f"{round(images - held)} images are left to train on"
        )
    values = OmegaConf.to_container(cfg.method, resolve=True)
    assert isinstance(values, dict)
    spec = MethodSpec(**{str(key): value for key, value in values.items()})
    Window.of(spec, steps * cfg.epochs, steps)
