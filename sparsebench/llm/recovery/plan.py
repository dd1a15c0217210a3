"""What recovery training needs, checked before anything is pruned."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sparsebench.errors import UserError, bad_value
from sparsebench.llm.corpus import Segments
from sparsebench.llm.layers import Block
from sparsebench.llm.models import LanguageModel
from sparsebench.llm.recovery.spec import RecoverySpec
from sparsebench.llm.spec import PrunerSpec
from sparsebench.llm.text import Text, check_apart, load_text, tokens_of
from sparsebench.sparsity.time import Duration
from sparsebench.tasks.build import container


@dataclass(frozen=True)
class Plan:
    """Dials and data of recovery training."""

    spec: RecoverySpec
    data: Segments
    notes: list[str]


def plan(cfg: DictConfig, language: LanguageModel, blocks: list[Block], test: Text) -> Plan | None:
    """The plan of a run; None if nothing is trained.

    Args:
        cfg: the whole config.
        language: the model.
        blocks: its decoder blocks.
        test: text that the model is measured on, and must not see.

    Raises:
        UserError: dials that contradict each other, text that is too short or measured on, a
            model whose layers or weights can't be trained so.
    """
    spec = RecoverySpec(**container(cfg.recovery))
    if spec.name == "none":
        return None
    if OmegaConf.get_type(cfg, "method") is not PrunerSpec:
        raise UserError(
            f"recovery={spec.name}: trains what is left of pruned weights, and "
            f"method={cfg.method.name} leaves none"
        )
    _check_numbers(spec)
    _check_parts(cfg, spec)
    _check_layers(spec, blocks)
    if language.context and spec.length > language.context:
        allowed = f"from 2 to the model's context of {language.context} tokens"
        raise bad_value("recovery.length", spec.length, allowed)
    dataset = spec.dataset or cfg.calibration.dataset
    split = spec.split or cfg.calibration.split
    text = load_text("recovery", dataset, split, container(cfg.data))
    check_apart(text, test, "recovery")
    ids = tokens_of(text.joined, language.tokenizer, language.vocabulary)
    if len(ids) < spec.length:
        allowed = f"'{text.name}' ({text.split}) has {len(ids)} tokens"
        raise bad_value("recovery.length", spec.length, allowed)
    data = Segments(ids, spec.length, spec.steps * spec.batch)
    passes = len(data) / data.whole
    said = f"recovery: {text.name} ({text.split}), {spec.tokens} tokens, {passes:.2g} passes"
    return Plan(spec, data, [said])


def _check_numbers(spec: RecoverySpec) -> None:
    each = spec.batch * spec.length
    if spec.tokens % each:
        allowed = f"a multiple of recovery.batch x recovery.length = {each}"
        raise bad_value("recovery.tokens", spec.tokens, allowed)
    ramp = Duration.parse(spec.ramp, "recovery.ramp").steps(spec.steps, spec.steps)
    if ramp > spec.steps:
        raise bad_value("recovery.ramp", spec.ramp, f"training has {spec.steps} steps")


def _check_parts(cfg: DictConfig, spec: RecoverySpec) -> None:
    """Dials that need others."""
    fits: dict[str, tuple[str, ...]] = {
        "shadow": ("coupled", "after_momentum"),
        "decay": ("decoupled", "coupled"),
    }
    allowed = fits.get(spec.absent, (spec.decay_in,))
    if spec.decay_in not in allowed:
        words = f"{' or '.join(allowed)} with recovery.absent={spec.absent}"
        raise bad_value("recovery.decay_in", spec.decay_in, words, allowed)
    if spec.decay is None and spec.decay_in != "decoupled":
        raise UserError("recovery.decay=null: is found only for recovery.decay_in=decoupled")
    if spec.decay_in == "after_momentum" and cfg.optimizer.name != "adamw":
        raise UserError(
            f"optimizer={cfg.optimizer.name}: recovery.decay_in=after_momentum needs "
            "optimizer=adamw"
        )
    extras = {"rank": spec.rank, "slorb": spec.slorb, "scale": spec.scale}
    given = [name for name, value in extras.items() if value is not None]
    if len(given) > 1:
        first, second = (f"recovery.{name}={extras[name]}" for name in given[:2])
        raise UserError(f"{second}: a layer has one extra, and there is {first}")
    for key, needed in (("trainer.devices", 1), ("trainer.ema", None), ("trainer.patience", None)):
        group, _, name = key.partition(".")
        if cfg[group][name] != needed:
            raise bad_value(key, cfg[group][name], f"{needed} with a recovery")
    if spec.batch % cfg.trainer.accumulate:
        said = f"must divide by trainer.accumulate={cfg.trainer.accumulate}"
        raise bad_value("recovery.batch", spec.batch, said)


def _check_layers(spec: RecoverySpec, blocks: list[Block]) -> None:
    linears = [linear for block in blocks for linear in block.linears]
    for linear in linears:
        width = linear.weight.shape[1]
        if spec.slorb and width % spec.slorb:
            allowed = f"'{linear.name}' has {width} inputs, which must divide by it"
            raise bad_value("recovery.slorb", spec.slorb, allowed)
    names = [linear.name.removesuffix(".weight") for linear in linears]
    if spec.rank and not any(targeted(spec, name) for name in names):
        last: Any = sorted({name.rpartition(".")[2] for name in names})
        allowed = f"none matches a layer of the blocks; there are {', '.join(last)}"
        raise bad_value("recovery.targets", list(spec.targets), allowed)


def targeted(spec: RecoverySpec, layer: str) -> bool:
    """Whether a layer gets LoRA."""
    return any(fnmatchcase(layer, glob) for glob in spec.targets)
