"""When a method updates its masks, and the values of its schedules there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparsebench.errors import UserError, bad_value
from sparsebench.sparsity import registry
from sparsebench.sparsity.spec import MethodSpec
from sparsebench.sparsity.time import Duration


@dataclass(frozen=True)
class Window:
    """The update window of one run, in optimizer steps.

    Attributes:
        begin: first step of the window.
        end: last step at which an update may happen.
        every: steps between updates; the first is at ``begin + every`` (at ``begin`` for
            a one-shot method, and where a schedule goes by phases).
        one_shot: there is one update, at ``begin``.
        phases: the schedule goes by the number of the update.
        settled: step by which the sparsity schedule is at its end; ``end`` if null.
    """

    begin: int
    end: int
    every: int
    one_shot: bool
    phases: bool = False
    settled: int | None = None

    @classmethod
    def of(cls, spec: MethodSpec, total_steps: int, steps_per_epoch: int) -> Window:
        """Resolve a spec's durations.

        Raises:
            UserError: an empty, reversed or never reached window, naming both keys.
        """
        begin, end, every = (
            Duration.parse(getattr(spec, k), f"method.{k}").steps(total_steps, steps_per_epoch)
            for k in ("begin", "end", "every")
        )
        settled = None
        if spec.sparsity_end is not None:
            rest = Duration.parse(spec.sparsity_end, "method.sparsity_end")
            settled = rest.steps(total_steps, steps_per_epoch)
        one_shot = spec.sparsity_schedule == "once"
        window = cls(begin, end, every, one_shot, by_phases(spec), settled)
        if updates(spec):
            _check(spec, window, total_steps)
        if spec.rewind != "none":
            _check_rounds(spec, window, total_steps)
        return window

    @property
    def last(self) -> int:
        """The last step at which an update happens."""
        return self._before(self.end)

    def _before(self, step: int) -> int:
        """The last update up to a step."""
        return self.begin + (step - self.begin) // self.every * self.every

    def is_update(self, step: int) -> bool:
        """Whether the masks are updated after optimizer step number ``step`` (from 1)."""
        if self.one_shot:
            return step == self.begin
        first = self.begin if self.phases else self.begin + 1
        return first <= step <= self.end and (step - self.begin) % self.every == 0

    def sparsity(self, spec: MethodSpec, final: float, step: int) -> float:
        """The sparsity asked for after ``step`` steps."""
        curve = registry.find(
            spec.sparsity_schedule, registry.SPARSITY_SCHEDULES, "method.sparsity_schedule"
        )
        start = spec.initial_sparsity
        if self.one_shot:
            return start + (final - start) * float(curve(step - self.begin))
        if self.phases:
            past = [(min(at, self.last) - self.begin) // self.every + 1 for at in (step, self.last)]
            return start + (final - start) * float(curve(*past))
        last = self.last if self.settled is None else self._before(self.settled)
        share = float(curve((min(step, last) - self.begin) / max(last - self.begin, 1)))
        if getattr(curve, "of_log_density", False):
            return 1.0 - float((1.0 - start) ** (1.0 - share) * (1.0 - final) ** share)
        return start + (final - start) * share

    def place(self, step: int, total_steps: int) -> tuple[int, int]:
        """Where in its round a step of a method that rewinds is.

        The first round begins at 0. Each update ends a round and takes training back to
        ``begin``, and the last round takes the steps that are left.

        Args:
            step: optimizer steps done.
            total_steps: optimizer steps of the run.

        Returns:
            The step as the round counts it, and that at which the round is over.
        """
        first = self.begin + self.every
        if step < first:
            return step, first
        if step >= self.last:
            return self.begin + step - self.last, self.begin + total_steps - self.last
        return self.begin + (step - self.begin) % self.every, first

    def drop_fraction(self, spec: MethodSpec, step: int) -> float:
        """The share of weights to drop after ``step`` steps."""
        if spec.drop is None or step > self.end:
            return 0.0
        curve = registry.find(spec.drop_schedule, registry.DROP_SCHEDULES, "method.drop_schedule")
        progress = (step - self.begin) / max(self.end - self.begin, 1)
        floor = min(spec.drop_floor, spec.drop_fraction)
        return floor + (spec.drop_fraction - floor) * float(curve(progress))


def by_phases(spec: MethodSpec) -> bool:
    """Whether the sparsity schedule is a function of the number of the update."""
    curve: Any = spec.sparsity_schedule
    if curve in registry.SPARSITY_SCHEDULES:  # one's own may still be an import path
        curve = registry.find(curve, registry.SPARSITY_SCHEDULES, "method.sparsity_schedule")
    return bool(getattr(curve, "by_phases", False))


def updates(spec: MethodSpec) -> bool:
    """Whether the method ever changes its masks after the start."""
    moves = spec.drop is not None or spec.sparsity_schedule != "constant"
    return spec.sparse and (moves or spec.storage != "zeroed" or spec.engine != "composed")


def _check(spec: MethodSpec, window: Window, total_steps: int) -> None:
    said = f"method.begin={spec.begin} method.end={spec.end} method.every={spec.every}"
    if window.one_shot:
        if not 0 < window.begin <= total_steps:
            raise UserError(
                f"{said}: method.begin must lie within the {total_steps} steps of training"
            )
        return
    if window.every < 1:
        raise UserError(f"{said}: method.every must be at least one optimizer step")
    if window.end > total_steps:
        raise UserError(f"{said}: method.end lies after the {total_steps} steps of training")
    if window.end <= window.begin:
        raise UserError(f"{said}: method.end must come after method.begin")
    first = window.begin + window.every
    if window.settled is not None and not first <= window.settled <= window.end:
        raise bad_value(
            "method.sparsity_end",
            str(spec.sparsity_end),
            f"a step at least {window.every} (method.every) after method.begin and not after "
            f"method.end is needed ({window.begin} and {window.end} here)",
        )
    if window.every > window.end - window.begin:
        raise UserError(
            f"{said}: no update would happen, since method.every ({window.every} steps) is longer "
            f"than the window from method.begin to method.end ({window.end - window.begin} steps)"
        )


def _check_rounds(spec: MethodSpec, window: Window, total_steps: int) -> None:
    if spec.drop or spec.sparsity_schedule in ("constant", "once"):
        raise UserError(
            f"method.rewind={spec.rewind}: it is for methods that prune in several steps, by a "
            "method.sparsity_schedule such as geometric and without a method.drop"
        )
    if window.last >= total_steps:
        raise UserError(
            f"method.end={spec.end}: no step would be left after the last pruning (at step "
            f"{window.last} of {total_steps}), and with method.rewind={spec.rewind} it is trained "
            "anew"
        )
