"""The dials of recovery training; nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sparsebench.sparsity.spec import duration, number, whole


def choice(default: str, *choices: str) -> Any:
    """A field that is one of some words."""
    return field(default=default, metadata={"choices": choices})


@dataclass
class RecoverySpec:
    """How a pruned model is trained, and on how much text.

    Attributes:
        tokens: in all; a multiple of ``batch`` sequences of ``length``.
        dataset: text, as in the group ``calibration``; null: that one's.
        split: of it; null: that of ``calibration``.
        train: all parameters, or only the linear layers that were pruned.
        absent: what becomes of weights outside the masks: they stay ``zero``; as a ``shadow`` they
            are left out of the forward pass and learn all the same; or they take part in it and
            ``decay`` to zero. But for ``zero``, masks are chosen anew as weights move.
        every: steps between two choices of masks.
        score: by which they are chosen, among the weights that competed in pruning.
        decay: pull of weights outside the masks towards 0: of a ``shadow`` its share (L2), of a
            ``decay`` a constant (L1), null for one that brings the largest to 0 over training.
        ramp: over which the pull rises from 0.
        decay_in: where it acts: ``coupled`` in the gradient; ``after_momentum`` behind Adam's first
            moment (a ``shadow``); ``decoupled`` from Adam, at one speed for all (a ``decay``).
        distill: share of the loss that is KL from what the unpruned model says.
        temperature: of both in it.
        rank: of LoRA; the pruned model is frozen then.
        alpha: LoRA's factor is alpha / rank.
        dropout: of LoRA's inputs.
        targets: names of layers with LoRA, as shell patterns.
        merge: what becomes of LoRA: stays apart (``none``); is added to the weights inside the
            masks (``masked``), which loses the rest; or has been masked while it learned
            (``training``), which loses nothing.
        slorb: inputs of a group of SLoRB; null: none.
        slorb_projection: whether its sums over groups learn too.
        scale: inputs of a group with a learned factor, folded into the weights; null: none.
    """

    name: str = "none"
    tokens: int = whole(1_024_000, 1, "tokens of training")
    batch: int = whole(8, 1, "sequences of an optimizer step")
    length: int = whole(256, 2, "tokens of a sequence")
    dataset: str | None = None
    split: str | None = None
    train: str = choice("all", "all", "linears")
    absent: str = choice("zero", "zero", "shadow", "decay")
    every: int = whole(10, 1, "steps between two choices of masks")
    score: str = choice("magnitude", "magnitude", "wanda")
    decay: float | None = number(0.0, "[0, inf)", "pull of weights outside the masks towards 0")
    ramp: str = duration("0%", "over which the pull rises from 0")
    decay_in: str = choice("coupled", "coupled", "after_momentum", "decoupled")
    distill: float = number(0.0, "[0, 1]", "share of KL from the unpruned model in the loss")
    temperature: float = number(1.0, "(0, inf)", "temperature of the KL")
    rank: int | None = whole(None, 1, "rank of LoRA")
    alpha: float = number(16.0, "(0, inf)", "LoRA: factor times rank")
    dropout: float = number(0.05, "[0, 1)", "LoRA: dropout of its inputs")
    targets: list[str] = field(default_factory=lambda: ["*.q_proj", "*.v_proj"])
    merge: str = choice("none", "none", "masked", "training")
    slorb: int | None = whole(None, 1, "SLoRB: inputs of a group")
    slorb_projection: bool = False
    scale: int | None = whole(None, 1, "inputs of a group with a learned factor")

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.tokens // (self.batch * self.length)

    @property
    def chooses(self) -> bool:
        """Whether masks are chosen anew while weights move."""
        return self.rank is None and self.absent != "zero"

    @property
    def looks_at_text(self) -> bool:
        """Whether calibration text decides about masks."""
        return self.chooses and self.score == "wanda"

    @property
    def needs_dense(self) -> bool:
        """Whether anything of the unpruned model is looked at."""
        return self.distill > 0 or self.chooses or self.slorb is not None
