"""The typed configuration: every key, its type, its default and what it may be.

The defaults here are part of a run's identity: a key at its default is left out of it, so
a new key orphans no old run. Changing a default changes what old names mean, and needs a
higher :data:`SCHEMA`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from sparsebench.llm.recovery.spec import RecoverySpec
from sparsebench.llm.spec import FactorSpec, PrunerSpec
from sparsebench.sparsity.nm_rules import of_pattern
from sparsebench.sparsity.spec import (
    DistributionSpec,
    MethodSpec,
    SelectorSpec,
    StructureSpec,
    duration,
    number,
)

#: Options that are only what others are made from.
BASES = ("composed", "pruner", "factoriser")
#: Keys that hold names of one's own.
OPEN = ("model.args", "data.args", "distribution.fixed")
#: Raised when a default changes or a result file means something else.
SCHEMA = 1


#: The seven zero-shot tasks of Wanda and many after it (arXiv 2306.11695).
ZERO_SHOT = ("boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")


def choice(default: Any, *choices: str | None) -> Any:
    """A field that is one of some words."""
    return field(default=default, metadata={"choices": choices})


def count(default: int | None, least: int = 1, most: int | None = None) -> Any:
    """A whole number of at least ``least`` and at most ``most``."""
    return field(default=default, metadata={"least": least} | ({"most": most} if most else {}))


@dataclass
class TaskConfig:
    """What is done with the model: see ``sparsebench/tasks``, and the dials each task has."""

    name: str = "classification"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class ModelConfig:
    """A network: a builder by import path, and its dials."""

    name: str = ""
    _target_: str = ""
    width: float = number(1.0, "(0, 64]", "multiplies hidden widths")
    num_classes: int | None = count(None)
    pretrained: bool = False
    checkpoint: str | None = None
    path: str | None = None
    hidden: list[int] | None = None
    depth: int | None = count(None)
    widen: float | None = number(None, "(0, 64]", "widening factor of a wide ResNet")
    stem: str | None = None
    dropout: float | None = number(None, "[0, 1)", "dropout probability")
    ift: str | None = choice(None, "wide", "parallel", "factorized", "doped")
    weights: str = choice("memory", "memory", "disk")
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class DataConfig:
    """A data set: a builder by import path, and how it is split and augmented."""

    name: str = ""
    _target_: str = ""
    root: str | None = None
    num_classes: int | None = count(None)
    input_shape: list[int] | None = None
    train_size: int | None = count(None)
    augment: str = choice("standard", "standard", "none")
    validation: float = field(default=0.1, metadata={"share": True})
    subset: float | None = field(default=None, metadata={"share": True})
    split_seed: int = count(0, 0, 2**63 - 1)
    workers: int = count(0, 0)
    path: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    train_split: str | None = None
    test_split: str | None = None
    cache: bool = True
    download: bool = False
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class StreamConfig:
    """A stream of tasks: how the data set is split, or changed from task to task."""

    name: str = "none"
    kind: str = choice("split", "split", "permuted", "rotated")
    tasks: int = count(5)
    scenario: str | None = choice(None, None, "task_il", "class_il", "domain_il")
    classes: list[str] | None = None
    class_order_seed: int | None = count(None, 0, 2**63 - 1)
    shuffle: str = choice("classes", "classes", "tasks")
    seed: int = count(0, 0, 2**63 - 1)
    degrees: float | None = number(None, "(0, 360)", "turn of each task against the one before")


@dataclass
class ReplayConfig:
    """What is kept of past tasks, and how it is learned again."""

    name: str = choice("none", "none", "er", "er_ace", "der", "derpp")
    size: int = count(200)
    batch: int | None = count(None)
    when: str = choice("first_epoch", "first_epoch", "every_batch")
    er: str = choice("together", "together", "apart")
    alpha: float = number(0.1, "[0, inf)", "weight of the kept logits")
    beta: float = number(0.5, "[0, inf)", "weight of the kept labels")


@dataclass
class RegulariserConfig:
    """What holds a network to what it was before the present task."""

    name: str = choice("none", "none", "ewc", "lwf")
    strength: float = number(1.0, "[0, inf)", "weight of the term")
    decay: float = number(1.0, "[0, 1]", "factor on the Fisher information of earlier tasks (EWC)")
    fisher: str = choice("true", "true", "empirical", "batch")
    samples: int | None = count(None)
    temperature: float = number(2.0, "(0, inf)", "of both softmax (LwF)")


@dataclass
class OptimizerConfig:
    """The optimizer and its dials; a dial that an optimizer does not have is refused."""

    name: str = "sgd"
    lr: float = number(0.1, "(0, inf)", "peak learning rate")
    weight_decay: float = number(0.0005, "[0, inf)", "decay of the weights")
    momentum: float = number(0.9, "[0, 1)", "momentum (SGD)")
    nesterov: bool = True
    beta1: float = number(0.9, "[0, 1)", "decay of the first moment (Adam)")
    beta2: float = number(0.999, "[0, 1)", "decay of the second moment (Adam)")
    eps: float = number(1e-8, "(0, inf)", "added to the denominator (Adam)")
    decay_norms: bool = True


@dataclass
class ScheduleConfig:
    """The learning rate over training."""

    name: str = "cosine"
    warmup: str = duration("0ep", "linear warm-up from zero")
    milestones: list[str] = field(default_factory=lambda: ["50%", "75%"])
    gamma: float = number(0.1, "(0, 1]", "factor at each milestone")
    final: float = number(0.0, "[0, 1]", "share of the peak at the end")


@dataclass
class TrainerConfig:
    """How training runs."""

    accelerator: str = choice("auto", "auto", "cpu", "gpu", "cuda", "mps")
    devices: int = count(1)
    precision: str = choice("32", "32", "bf16", "16", "64")
    accumulate: int = count(1)
    clip: float | None = number(None, "(0, inf)", "largest norm of the gradient")
    ema: float | None = number(None, "(0, 1)", "decay of the averaged weights")
    compile: bool = False
    channels_last: bool = True
    patience: int | None = count(None)
    label_smoothing: float = number(0.0, "[0, 1)", "share of uniform label noise")
    mixup: float = number(0.0, "[0, inf)", "alpha of mixup; 0 is off")
    cutmix: float = number(0.0, "[0, inf)", "alpha of CutMix; 0 is off")
    checkpoint_every: float = number(60.0, "[0, inf)", "seconds between checkpoints in an epoch")
    threads: int | None = count(None)


@dataclass
class LoggerConfig:
    """Where metrics go beside the run's own CSV."""

    name: str = choice("csv", "csv", "wandb", "tensorboard", "all")
    project: str = "sparsebench"
    entity: str | None = None
    mode: str = choice("auto", "auto", "online", "offline", "disabled")
    group: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass
class CalibrationConfig:
    """Text that a language model is pruned on."""

    name: str = "wikitext2"
    dataset: str = "wikitext2"
    split: str = "validation"
    samples: int = count(128)
    length: int = count(2048, 2)
    order: str = choice("first", "first", "random")
    activations: str = choice("memory", "memory", "disk")


@dataclass
class EvalConfig:
    """How a pruned language model is measured."""

    name: str = "perplexity"
    measures: list[str] = field(default_factory=lambda: ["perplexity"])
    dataset: str = "wikitext2"
    split: str = "test"
    dense: bool = True
    errors: bool = False
    lengths: list[int] = field(default_factory=lambda: [512, 2048])
    max_segments: int | None = count(None)
    questions: int = count(200)
    context: int = count(32)
    continuation: int = count(8)
    tasks: list[str] = field(default_factory=lambda: list(ZERO_SHOT))
    limit: int | None = count(None)


@dataclass
class Config:
    """One run."""

    task: TaskConfig = field(default_factory=TaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    regulariser: RegulariserConfig = field(default_factory=RegulariserConfig)
    method: Any = None  # a MethodSpec if composed of parts; else a class of one's own, untyped
    distribution: DistributionSpec = field(default_factory=DistributionSpec)
    structure: StructureSpec = field(default_factory=StructureSpec)
    selector: SelectorSpec = field(default_factory=SelectorSpec)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    recovery: RecoverySpec = field(default_factory=RecoverySpec)
    table: Any = None
    sparsity: float = number(0.9, "[0, 1)", "share of zeros over the selected weights")
    seed: int = count(0, 0, 2**63 - 1)
    epochs: int = count(50)
    training_flops: float | None = number(
        None, "(0, inf)", "train for as many FLOPs as this multiple of dense training's, not epochs"
    )
    batch_size: int = count(128)
    runs: str = "runs"
    force: bool = False
    quiet: bool = False
    plots: bool = True
    save_masks: bool = False
    save_model: bool = False
    allow: list[str] = field(default_factory=list)


#: Keys that can't change a result, and so are no part of a run's identity.
IGNORED = (
    "logger",
    "table",
    "runs",
    "force",
    "quiet",
    "plots",
    "save_masks",
    "save_model",
    "allow",
    "data.root",
    "data.workers",
    "data.cache",
    "data.download",
    "trainer.accelerator",
    "trainer.threads",
    "trainer.checkpoint_every",
    "model.weights",
    "calibration.activations",
)


def register() -> None:
    """Make the schema known to Hydra: the root's, and those of methods that train or prune.

    The resolver ``nm_sparsity`` is what YAMLs of N:M structures take ``sparsity`` from.
    """
    OmegaConf.register_new_resolver("nm_sparsity", of_pattern, replace=True)
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(group="method", name="composed", node=MethodSpec)
    store.store(group="method", name="pruner", node=PrunerSpec)
    store.store(group="method", name="factoriser", node=FactorSpec)
