"""Dials that would do nothing where they are set.

Such a dial would give a run another name and the same result, or hide a mistake, so it is
refused. What a sweep sets for all its methods alike (when masks are updated, at which
sparsity) is left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sparsebench.config.schema import Config, StreamConfig
from sparsebench.errors import UserError
from sparsebench.llm.spec import FactorSpec, PrunerSpec
from sparsebench.sparsity.spec import MethodSpec

_BUILTIN = "sparsebench.data.builtin."
_GENERATED = ("digits", "mnist1d", "mnist1d_shuffled")
_DROPPING = (
    "drop_fraction",
    "drop_schedule",
    "drop_rounding",
    "drop_scope",
    "grow_scope",
    "regrow",
    "grown",
)
_OF_SPARSE = (
    "initial",
    "initial_scope",
    "initial_rounds",
    "initial_batches",
    "initial_regrow",
    "initial_shuffle",
    "also",
    "also_share",
    "absent_decay",
    "sparsity_schedule",
    "sparsity_end",
    "drop",
    "grow",
    "redistribute",
    "storage",
    "when",
    "rewind",
    "collapse",
)


@dataclass(frozen=True)
class Rule:
    """When some dials of a group mean something.

    Attributes:
        group: config group.
        dials: keys of it.
        used: whether they have an effect in a config.
        without: what they would need, to end the sentence "has no effect ...".
    """

    group: str
    dials: tuple[str, ...]
    used: Callable[[DictConfig], bool]
    without: str


def _optimizer(*names: str) -> Callable[[DictConfig], bool]:
    return lambda cfg: cfg.optimizer.name in names


def _schedule(*names: str) -> Callable[[DictConfig], bool]:
    return lambda cfg: cfg.schedule.name in names


def _task(*names: str) -> Callable[[DictConfig], bool]:
    return lambda cfg: cfg.task.name in names


def _gradual(cfg: DictConfig) -> bool:
    return bool(cfg.method.sparsity_schedule != "constant")


def _moves(cfg: DictConfig) -> bool:
    spec = cfg.method
    return (
        _gradual(cfg)
        or spec.drop is not None
        or spec.storage != "zeroed"
        or spec.engine != "composed"
    )


def _looks_at_momentum(cfg: DictConfig) -> bool:
    parts = [cfg.method[part] for part in ("prune", "drop", "grow", "redistribute")]
    return any(part == "momentum" or "." in str(part) for part in parts)


def _starts_sparse(cfg: DictConfig) -> bool:
    return not _gradual(cfg) or cfg.method.initial_sparsity > 0 or cfg.method.initial == "dense"


def _distributed(cfg: DictConfig) -> bool:
    return cfg.method.engine not in ("str", "movement_soft") or cfg.method.initial_sparsity > 0


def _trains(cfg: DictConfig) -> bool:
    return bool(cfg.task.name != "prune_llm")


def _learns(cfg: DictConfig) -> bool:
    return _trains(cfg) or bool(cfg.recovery.name != "none")


def _all_but(group: str, *others: str) -> tuple[str, ...]:
    return tuple(s.name for s in fields(getattr(Config(), group)) if s.name not in others)


def _hessian(cfg: DictConfig) -> bool:
    return cfg.method.score == "obs" or cfg.method.solver != "none" or "." in cfg.method.score


def _own_data(cfg: DictConfig) -> bool:
    return not str(cfg.data["_target_"]).startswith(_BUILTIN)


def _measures(name: str) -> Callable[[DictConfig], bool]:
    return lambda cfg: name in cfg.eval.measures


_TABLES = (
    Rule("optimizer", ("momentum", "nesterov"), _optimizer("sgd"), "without optimizer=sgd"),
    Rule("optimizer", ("beta1", "beta2", "eps"), _optimizer("adam", "adamw"), "without an Adam"),
    Rule("schedule", ("milestones", "gamma"), _schedule("step"), "without schedule=step"),
    Rule("schedule", ("final",), _schedule("cosine", "linear"), "with this schedule"),
    Rule("structure", ("n", "m"), lambda cfg: cfg.structure.name == "nm",
         "without an N:M structure"),
    Rule("structure", ("block",), lambda cfg: cfg.structure.name == "block",
         "without structure=block"),
    Rule("trainer", ("patience",), lambda cfg: cfg.data.validation > 0, "with data.validation=0"),
    Rule("trainer", ("label_smoothing", "mixup", "cutmix"),
         _task("classification", "profile", "gates", "compress"), "without task=classification"),
    Rule("stream", tuple(spec.name for spec in fields(StreamConfig)), _task("continual"),
         "without task=continual"),
    Rule("stream", ("shuffle",),
         lambda cfg: cfg.stream.class_order_seed is not None or cfg.stream.classes is not None,
         "without a stream.class_order_seed"),
    Rule("stream", ("shuffle",), lambda cfg: cfg.stream.kind == "split",
         "where all tasks have all classes"),
    Rule("stream", ("degrees",), lambda cfg: cfg.stream.kind == "rotated",
         "without stream.kind=rotated"),
    Rule("stream", ("seed",),
         lambda cfg: cfg.stream.kind != "split" and cfg.stream.degrees is None,
         "where nothing of the stream is drawn"),
    Rule("replay", ("name",), _task("continual"), "without task=continual"),
    Rule("replay", ("size", "batch", "when"), lambda cfg: cfg.replay.name != "none",
         "without a replay"),
    Rule("replay", ("er",), lambda cfg: cfg.replay.name == "er", "without replay=er"),
    Rule("replay", ("alpha",), lambda cfg: cfg.replay.name in ("der", "derpp"),
         "without replay=der or derpp"),
    Rule("replay", ("beta",), lambda cfg: cfg.replay.name == "derpp", "without replay=derpp"),
    Rule("regulariser", ("name",), _task("continual"), "without task=continual"),
    Rule("regulariser", ("strength",), lambda cfg: cfg.regulariser.name != "none",
         "without a regulariser"),
    Rule("regulariser", ("decay", "fisher", "samples"), lambda cfg: cfg.regulariser.name == "ewc",
         "without regulariser=ewc"),
    Rule("regulariser", ("temperature",), lambda cfg: cfg.regulariser.name == "lwf",
         "without regulariser=lwf"),
    Rule("task", ("options",), lambda cfg: cfg.task.name not in ("profile", "prune_llm"),
         "with this task"),
    *(Rule(group, _all_but(group, "name"), _task("prune_llm"), "without task=prune_llm")
      for group in ("calibration", "eval")),
    *(Rule("eval", keys, _measures(name), f"without {name} among eval.measures")
      for name, keys in (("perplexity", ("lengths", "max_segments")),
                         ("cloze", ("questions", "context", "continuation")),
                         ("zero_shot", ("tasks", "limit")))),
    Rule("model", ("weights",), _task("prune_llm"), "without task=prune_llm"),
    *(Rule(group, _all_but(group), _learns, "where nothing is trained")
      for group in ("optimizer", "schedule")),
    Rule("selector", _all_but("selector"), _trains, "where pruning chooses the layers"),
    Rule("distribution", _all_but("distribution"), _trains,
         "where nothing is trained; method.ratios says how sparse each layer gets"),
    Rule("trainer", _all_but("trainer", "accelerator", "threads", "checkpoint_every"), _learns,
         "where nothing is trained"),
    Rule("recovery", ("name",), lambda cfg: cfg.task.name == "prune_llm", "without task=prune_llm"),
    Rule("recovery", _all_but("recovery", "name"), lambda cfg: cfg.recovery.name != "none",
         "without a recovery"),
    Rule("recovery", ("absent", "train", "slorb", "scale"), lambda cfg: cfg.recovery.rank is None,
         "where only LoRA learns"),
    Rule("recovery", ("every", "score", "decay", "ramp", "decay_in"),
         lambda cfg: cfg.recovery.absent != "zero", "where weights outside the masks stay zero"),
    Rule("recovery", ("alpha", "dropout", "targets", "merge"),
         lambda cfg: cfg.recovery.rank is not None, "without a recovery.rank"),
    Rule("recovery", ("dropout",), lambda cfg: cfg.recovery.merge != "training",
         "with recovery.merge=training"),
    Rule("recovery", ("temperature",), lambda cfg: cfg.recovery.distill > 0,
         "without a recovery.distill"),
    Rule("recovery", ("slorb_projection",), lambda cfg: cfg.recovery.slorb is not None,
         "without a recovery.slorb"),
    Rule("model", ("path",), lambda cfg: str(cfg.model["_target_"]).startswith("sparsebench.llm.")
         or not str(cfg.model["_target_"]).startswith("sparsebench."), "with this model"),
    Rule("data", ("args",),
         lambda cfg: _own_data(cfg) or cfg.data["_target_"].endswith(".five_datasets"),
         "without a data._target_ of your own"),
    Rule("data", ("path",), lambda cfg: _own_data(cfg) or cfg.data.name == "hf", "without data=hf"),
    Rule("data", ("image_column", "label_column", "train_split", "test_split"),
         lambda cfg: _own_data(cfg) or cfg.data.name not in _GENERATED,
         "with data that are not in files"),
)  # fmt: skip
_METHOD = (
    Rule("method", (*_OF_SPARSE, "prune", "scope", "initial_sparsity", "momentum", *_DROPPING),
         lambda cfg: cfg.method.sparse and not cfg.method.shrink, "on a dense network"),
    Rule("structure", ("name",), lambda cfg: not cfg.method.shrink,
         "on a narrower dense network, which has no zeros"),
    Rule("distribution", _all_but("distribution"), _distributed,
         "where thresholds say how sparse each layer gets"),
    Rule("method", ("scope", "initial_sparsity", "sparsity_end"), _gradual,
         "without a method.sparsity_schedule"),
    Rule("method", ("prune",),
         lambda cfg: _gradual(cfg) or cfg.method.initial == "dense"
         or cfg.method.storage != "zeroed",
         "without a method.sparsity_schedule"),
    Rule("method", ("initial_rounds", "initial_batches", "initial_scope"),
         lambda cfg: cfg.method.initial not in ("dense", "random"),
         "without a score in method.initial"),
    Rule("method", ("initial_regrow",), lambda cfg: cfg.method.initial_rounds > 1,
         "without method.initial_rounds"),
    Rule("method", ("initial_shuffle",), lambda cfg: cfg.method.initial != "random",
         "where places are random already"),
    Rule("method", ("also",), lambda cfg: _gradual(cfg) or cfg.method.drop is not None,
         "where nothing is pruned or dropped"),
    Rule("method", ("also_share",), lambda cfg: cfg.method.also is not None,
         "without a method.also"),
    Rule("method", ("absent_decay",), lambda cfg: cfg.method.storage == "shadow",
         "without method.storage=shadow"),
    Rule("method", ("initial",), _starts_sparse, "where training starts dense"),
    Rule("method", _DROPPING, lambda cfg: cfg.method.drop is not None, "without a method.drop"),
    Rule("method", ("grown_scale",), lambda cfg: cfg.method.grown != "zero",
         "on a method.grown of zero"),
    Rule("method", ("redistribute",), lambda cfg: cfg.method.grow_scope != "global",
         "with method.grow_scope=global"),
    Rule("method", ("momentum",), _looks_at_momentum, "without a part that looks at momentum"),
    Rule("method", ("ticket",), lambda cfg: cfg.method.rewind != "none", "without a method.rewind"),
    Rule("method", ("reuse",), lambda cfg: cfg.method.engine in ("isolated", "adaptive"),
         "without method.engine=isolated"),
    Rule("method", ("storage", "when"), _moves, "on masks that never change"),
)  # fmt: skip

_PRUNER = (
    Rule("method", ("outliers", "spread"), lambda cfg: cfg.method.ratios == "owl",
         "without method.ratios=owl"),
    Rule("method", ("damping", "columns"), _hessian, "without a part that looks at the Hessian"),
    Rule("method", ("swap_cycles", "swap_threshold", "swap_unit", "swap_power", "swap_sign",
                    "swap_skip"),
         lambda cfg: cfg.method.swap is not None, "without a method.swap"),
    Rule("method", ("tail", "tau"), lambda cfg: cfg.method.ratios == "alpha",
         "without method.ratios=alpha"),
    Rule("method", ("units",), lambda cfg: cfg.structure.name == "channel",
         "without structure=channel"),
)  # fmt: skip
_FACTORISER = (
    Rule("method", ("damping", "propagate"), lambda cfg: cfg.method.whiten,
         "without method.whiten=true"),
    Rule("method", ("rho", "iterations", "step"),
         lambda cfg: cfg.method.form == "dictionary" or "." in cfg.method.form,
         "without method.form=dictionary"),
    Rule("structure", ("name",), lambda cfg: False, "on products, which have no pattern of zeros"),
)  # fmt: skip
#: Rules and defaults of each family of methods.
_FAMILIES: dict[Any, tuple[tuple[Rule, ...], Any]] = {
    MethodSpec: (_METHOD, MethodSpec()),
    PrunerSpec: (_PRUNER, PrunerSpec()),
    FactorSpec: (_FACTORISER, FactorSpec()),
}


def check_idle(cfg: DictConfig) -> None:
    """Refuse a dial that is not at its default and that nobody would look at.

    Raises:
        UserError: naming the dial and what it would need.
    """
    own_rules, own = _FAMILIES.get(OmegaConf.get_type(cfg, "method"), ((), None))
    for rule in (*_TABLES, *own_rules):
        if rule.used(cfg):
            continue
        defaults = own if rule.group == "method" else getattr(_DEFAULTS, rule.group)
        for dial in rule.dials:
            value = cfg[rule.group][dial]
            if value != getattr(defaults, dial):
                key = f"{rule.group}.{dial}"
                raise UserError(f"{key}={value}: has no effect {_where(cfg, rule)}")


def _where(cfg: DictConfig, rule: Rule) -> str:
    name: Any = cfg[rule.group].get("name", "")
    return f"{rule.without} ({rule.group}={name})" if name else rule.without


_DEFAULTS = Config()
