"""What a method is made of, as plain typed data: the schema of the config and of the library.

Nothing here needs torch, so the command line can check a method without loading it.
Each field carries its check in ``metadata`` (see :func:`sparsebench.sparsity.fields.check_fields`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sparsebench.sparsity import registry


def one_of(default: Any, names: Any, doc: str) -> Any:
    """A field that is one of ``names``, or the import path of one's own."""
    return field(default=default, metadata={"names": tuple(names), "doc": doc})


def number(default: Any, allowed: str, doc: str) -> Any:
    """A number in an interval such as ``[0, 1)``; an end may be ``inf``."""
    return field(default=default, metadata={"range": allowed, "doc": doc})


def whole(default: Any, least: int, doc: str) -> Any:
    """A whole number of at least ``least``."""
    return field(default=default, metadata={"least": least, "doc": doc})


def duration(default: str | None, doc: str) -> Any:
    """A length of time, such as ``30ep``, ``5000it`` or ``75%``."""
    return field(default=default, metadata={"duration": True, "doc": doc})


@dataclass
class SelectorSpec:
    """Which parameters are sparse."""

    name: str = "weights"
    kinds: list[str] = field(default_factory=lambda: ["linear", "conv"])
    include: list[str] = field(default_factory=lambda: ["*"])
    exclude: list[str] = field(default_factory=list)
    first: bool = True
    last: bool = True


@dataclass
class DistributionSpec:
    """How much each layer keeps."""

    name: str = one_of("erk", registry.DISTRIBUTIONS, "rule that shares the density out")
    power: float = number(1.0, "[0, inf)", "exponent of ERK's ratio; 0 is uniform")
    first_dense: bool = False
    last_dense: bool = False
    fc_density: float = number(1.0, "(0, 1]", "density of the classifier (erk_plus)")
    compat: str | None = None
    fixed: dict[str, float] = field(default_factory=dict)


@dataclass
class StructureSpec:
    """Which patterns of zeros are allowed."""

    name: str = one_of("unstructured", registry.STRUCTURES, "pattern of zeros")
    n: int | None = None
    m: int | None = None
    block: list[int] | None = None
    misfit: str = field(default="refuse", metadata={"choices": ("refuse", "pad", "skip")})


@dataclass
class MethodSpec:
    """A sparsity method put together from parts.

    At an update the method first brings the number of weights to the target of its
    sparsity schedule (``prune`` decides which stay), then explores: it drops a fraction
    of the weights and grows as many elsewhere.
    """

    name: str = ""
    engine: str = one_of("composed", registry.ENGINES, "class that runs the method")
    options: dict[str, Any] = field(default_factory=dict)
    sparse: bool = True
    shrink: bool = False
    initial: str = one_of("random", registry.INITIAL, "topology at the first step")
    initial_scope: str = field(default="layer", metadata={"choices": ("layer", "global")})
    initial_rounds: int = field(default=1, metadata={"least": 1, "most": 10_000})
    initial_batches: int = field(default=1, metadata={"least": 1, "most": 10_000})
    initial_regrow: bool = False
    initial_shuffle: bool = False
    sparsity_schedule: str = one_of(
        "constant", registry.SPARSITY_SCHEDULES, "sparsity over the update window"
    )
    initial_sparsity: float = number(0.0, "[0, 1)", "sparsity where a schedule begins")
    begin: str = duration("0%", "start of the update window")
    end: str = duration("75%", "end of the update window")
    every: str = duration("100it", "steps between two updates")
    sparsity_end: str | None = duration(None, "when the sparsity schedule ends, if before `end`")
    prune: str = one_of("magnitude", registry.SCORES, "score that decides what is kept")
    scope: str = field(default="layer", metadata={"choices": ("layer", "global")})
    also: str | None = one_of(
        None, registry.SCORES, "second score, which removes a share of what goes"
    )
    also_share: float = number(
        0.1, "(0, 1]", "share of what is pruned or dropped that `also` chooses"
    )
    drop: str | None = one_of(None, registry.SCORES, "score of weights to drop, lowest first")
    grow: str | None = one_of(None, registry.GROWERS, "how new connections are chosen")
    drop_fraction: float = number(0.3, "(0, 1)", "share of the weights dropped at an update")
    drop_schedule: str = one_of("cosine", registry.DROP_SCHEDULES, "drop fraction over time")
    drop_floor: float = number(0.0, "[0, 1)", "value at which an annealed fraction ends")
    drop_rounding: str = field(default="floor", metadata={"choices": ("floor", "ceil")})
    drop_scope: str = field(default="layer", metadata={"choices": ("layer", "global")})
    grow_scope: str = field(default="layer", metadata={"choices": ("layer", "global")})
    redistribute: str | None = one_of(None, registry.SHARES, "how growth is shared by layers")
    grown: str = one_of("zero", registry.GROWN, "values that new connections start from")
    grown_scale: float = number(1.0, "(0, inf)", "factor on the values of new connections")
    regrow: str = field(default="keep", metadata={"choices": ("keep", "zero", "never")})
    momentum: float = number(0.9, "[0, 1)", "decay of the momentum of dense gradients")
    reuse: str = field(default="anywhere", metadata={"choices": ("anywhere", "initial", "never")})
    when: str = field(default="after", metadata={"choices": ("after", "replace")})
    storage: str = field(default="zeroed", metadata={"choices": ("zeroed", "frozen", "shadow")})
    absent_decay: float = number(0.0, "(-inf, inf)", "pull of absent shadow weights towards 0")
    collapse: str = field(default="note", metadata={"choices": ("note", "refuse")})
    rewind: str = field(default="none", metadata={"choices": ("none", "weights", "learning_rate")})
    ticket: str = field(
        default="original",
        metadata={"choices": ("original", "reinit", "random_mask", "shuffled_inputs")},
    )
