"""Progressive gradient flow: N:M that comes on little by little (arXiv 2402.04744).

Two families; both choose by the magnitude of the moment at each step and keep dense weights that
all learn (shadow storage). Training is dense until ``method.begin``, N:M is reached at
``options.until``, and from there on it is plain straight-through N:M training.

*Mask decay* (MdGf): the forward pass sees W x (m + (1 - m) D) with the N:M mask m, where D falls
from 1 to 0: linear, D = max(0, 1 - beta t), or exponential, D = exp(-beta t), with t the steps
since ``begin``. While D > 0 all weights take part, so the masks are full and the FLOPs dense.
*Structure decay* (SdGf): a binary mask whose pattern changes by frames of equal length. Stepwise:
M-1:M, M/2:M, M/4:M, ..., N:M. Geometric: 8N:8M, 4N:4M, 2N:2M, N:M, the density that of N:M from the
first frame on; a layer whose inputs do not divide by kM takes the next k that does.

Where paper and code (abhibambhaniya/progressive_gradient_flow_nm_sparsity) disagree:

* The code hands the gradient at the seen weights to all weights as it is (``gradient: ste``, our
  default); the paper speaks of a gradient that is held back, which the rule of the product gives:
  it is scaled by m + (1 - m) D (``gradient: product``).
* The code starts N:M itself only when the fine-tuning begins, after log2(M/N) frames; its comment
  and the paper count log2(M/N) + 1 frames, N:M among them, as here.
* Betas were tuned by hand; without one, D is 0 at ``until`` (linear) or 1/100 there and then 0.
* The code leaves out the bias of its sparse linear layers, and its exponential D is cut to 0 one
  epoch after fine-tuning begins; here biases stay, and D is 0 from ``until`` on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparsebench.errors import UserError
from sparsebench.sparsity.composed import Composed
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.nm import NM, mask
from sparsebench.sparsity.spec import MethodSpec, StructureSpec, duration, number, one_of
from sparsebench.sparsity.structure import Shape
from sparsebench.sparsity.time import Duration
from sparsebench.sparsity.window import Window

_REST = 0.01  # what an exponential decay leaves at its end, where no beta is given


@dataclass(frozen=True, kw_only=True)
class Phases(Window):
    """Dense training until ``begin``, something between, N:M from ``until`` on.

    Attributes:
        until: step from which on it is plain N:M training.
    """

    until: int

    def is_update(self, step: int) -> bool:
        """Also where a phase begins."""
        return step in (self.begin, self.until) or super().is_update(step)

    def progress(self, step: int) -> float:
        """Share of the way from ``begin`` to ``until``; negative before."""
        return (step - self.begin) / (self.until - self.begin)


@dataclass(frozen=True, kw_only=True)
class Fading(Phases):
    """Weights outside the pattern fade.

    Attributes:
        linear: whether along a straight line.
        beta: rate in a step; null: gone at ``until``.
    """

    linear: bool
    beta: float | None

    def share(self, step: int) -> float:
        """D, what is seen of the weights outside the pattern after ``step`` steps."""
        if step >= self.until:
            return 0.0
        passed, length = max(step - self.begin, 0), self.until - self.begin
        if self.linear:
            return max(0.0, 1.0 - (self.beta or 1.0 / length) * passed)
        return math.exp(-(self.beta or -math.log(_REST) / length) * passed)

    def sparsity(self, spec: MethodSpec, final: float, step: int) -> float:
        """None while anything outside the pattern takes part."""
        return 0.0 if self.share(step) > 0.0 else final


@dataclass(frozen=True, kw_only=True)
class Frames(Phases):
    """Patterns in frames of equal length.

    Attributes:
        patterns: N and M of each frame.
    """

    patterns: tuple[tuple[int, int], ...]

    def pattern(self, step: int) -> tuple[int, int] | None:
        """N and M after ``step`` steps; none while training is dense."""
        if step < self.begin:
            return None
        frame = int(self.progress(step) * len(self.patterns))
        return self.patterns[min(frame, len(self.patterns) - 1)]

    def sparsity(self, spec: MethodSpec, final: float, step: int) -> float:
        """That of the pattern of the moment."""
        pattern = self.pattern(step)
        return 1.0 - pattern[0] / pattern[1] if pattern else 0.0


def patterns(n: int, m: int, kind: str) -> tuple[tuple[int, int], ...]:
    """The patterns on the way to N:M, which is the last.

    Args:
        n: kept of each group at the end.
        m: size of a group at the end.
        kind: ``stepwise`` (M-1:M, M/2:M, M/4:M, ...) or ``geometric`` (8N:8M, 4N:4M, 2N:2M).
    """
    if kind == "geometric":
        return tuple((k * n, k * m) for k in (8, 4, 2, 1))
    kept, half = [m - 1], m // 2
    while half > n:
        kept.append(half)
        half //= 2
    return tuple((k, m) for k in sorted({k for k in kept if k > n} | {n}, reverse=True))


class Progressive(Composed):
    """What both families share: three times, and an N:M pattern to end with."""

    structure: NM

    def _find_parts(self, spec: MethodSpec, structure: StructureSpec) -> None:
        super()._find_parts(spec, structure)
        if not isinstance(self.structure, NM):
            raise UserError(
                f"structure={structure.name}: method.engine={spec.engine} needs an N:M structure, "
                "such as structure=nm_1_8"
            )

    def _times(self, total_steps: int, steps_per_epoch: int) -> dict[str, Any]:
        """Fields of the window."""
        window = super().window(total_steps, steps_per_epoch)
        until = Duration.parse(self.options.until, "method.options.until")
        last = until.steps(total_steps, steps_per_epoch)
        if self.sparsity > 0.0 and not window.begin < last <= window.end:
            raise UserError(
                f"method.options.until={self.options.until}: must come after method.begin="
                f"{self.spec.begin} and not after method.end={self.spec.end}"
            )
        return {**vars(window), "until": last}


@dataclass(frozen=True)
class MaskDecayOptions:
    """How what N:M leaves out fades away."""

    decay: str = one_of("exponential", ("linear", "exponential"), "shape of the decay")
    beta: float | None = number(None, "(0, inf)", "rate of the decay in a step")
    until: str = duration("75%", "when nothing is left of it")
    gradient: str = one_of("ste", ("ste", "product"), "gradient of the weights")


class MaskDecay(Progressive):
    """W x (m + (1 - m) D) in the forward pass, D falling to 0."""

    Options: ClassVar[type] = MaskDecayOptions

    def window(self, total_steps: int, steps_per_epoch: int) -> Fading:
        """With the decay in it."""
        times = self._times(total_steps, steps_per_epoch)
        return Fading(**times, linear=self.options.decay == "linear", beta=self.options.beta)

    def start(self, state: TrainState) -> None:
        """Show the faded weights."""
        super().start(state)
        self._state = state
        if self.sparsity > 0.0:
            state.masks.show = self._show

    def _scale(self, dense: Tensor) -> Tensor | None:
        """The factor m + (1 - m) D of a weight; none where it is 1, or the mask itself."""
        assert isinstance(self._window, Fading)
        share = self._window.share(self._state.step)
        if share in (0.0, 1.0):
            return None
        pad = self.structure.spec.misfit == "pad"
        kept = mask(dense, self.structure.n, self.structure.m, pad=pad)
        return torch.where(kept, 1.0, share).to(dense.dtype)

    def _show(self, name: str, dense: Tensor, factor: Tensor) -> Tensor:
        scale = self._scale(dense)
        return dense * (factor if scale is None else scale)

    @torch.no_grad()
    def after_backward(self, state: TrainState) -> bool:
        """Scale the gradient too, if it is to be that of the product."""
        if self.options.gradient == "product" and self.sparsity > 0.0:
            for name, parameter in state.masks.parameters.items():
                scale = self._scale(state.masks.dense(name))
                if parameter.grad is not None and scale is not None:
                    parameter.grad.mul_(scale)
        return super().after_backward(state)


@dataclass(frozen=True)
class StructureDecayOptions:
    """How the pattern becomes finer or sparser."""

    frames: str = one_of("stepwise", ("stepwise", "geometric"), "patterns on the way to N:M")
    until: str = duration("75%", "end of the last of them, which is N:M itself")


class StructureDecay(Progressive):
    """Patterns in frames of equal length, the last of them N:M."""

    Options: ClassVar[type] = StructureDecayOptions

    def window(self, total_steps: int, steps_per_epoch: int) -> Frames:
        """With the patterns in it."""
        times = self._times(total_steps, steps_per_epoch)
        spec = self.structure.spec
        assert spec.n is not None
        assert spec.m is not None
        return Frames(**times, patterns=patterns(spec.n, spec.m, self.options.frames))

    def _place(self, state: TrainState, target: float) -> None:
        self._follow(state)
        super()._place(state, target)

    def update(self, state: TrainState) -> None:
        """Follow the frames."""
        self._follow(state)
        self._retarget(state)

    def _follow(self, state: TrainState) -> None:
        """Take on the pattern of the moment; 1:1 is dense."""
        assert isinstance(self._window, Frames)
        pattern = self._window.pattern(state.step) or (1, 1)
        self.structure = Framed(self.structure.spec, *pattern)


class Framed(NM):
    """A pattern on the way to another one, as coarse as each layer allows."""

    def __init__(self, last: StructureSpec, n: int, m: int) -> None:
        """Take the pattern to end with, and that of the moment."""
        super().__init__(last)
        self.n, self.m = n, m

    def size(self, shape: Shape) -> int:
        """M of the moment, or the largest below by halves that divides the inputs."""
        m = self.m
        while m > (self.spec.m or 1) and shape[1] % m:
            m //= 2
        return m
