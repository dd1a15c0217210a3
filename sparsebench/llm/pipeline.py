"""Pruning block by block: measure, prune, carry the activations on, remember, next.

Each block sees what the pruned blocks before it make of the calibration text (or, with
``propagate: false``, the unpruned ones). A finished block is written to the run's folder, so that
a killed run goes on at the block where it was; activations are computed again by one pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sparsebench.data.seeding import generator
from sparsebench.llm.activations import Activations
from sparsebench.llm.disk import Disk
from sparsebench.llm.factoriser import Factoriser
from sparsebench.llm.factors import Tensors, storage
from sparsebench.llm.inputs import Inputs
from sparsebench.llm.kept import Done, Kept
from sparsebench.llm.layers import Block, Linear
from sparsebench.llm.parts import Parts
from sparsebench.llm.ratios import Question
from sparsebench.llm.scores import Score, Weights
from sparsebench.llm.structured import Units
from sparsebench.sparsity.scores import needs_of

Result = TypeVar("Result")


@dataclass
class Outcome:
    """What pruning gave beside the pruned model.

    Attributes:
        masks: packed bits by name of the weight, in the shape the model holds it; mapped from the
            run's folder where the weights are on disk too.
        sparsities: what each layer was given.
        errors: how far each layer's output is off, where that was measured.
        seconds: of pruning in all (``pruning``), and of its passes (``calibration_forward``).
        resumed: number of blocks that an interrupted run had done.
        factors: bytes by part of layers that have become products, by name of the weight.
    """

    masks: dict[str, Tensor] = field(default_factory=dict)
    sparsities: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    resumed: int = 0
    factors: dict[str, dict[str, int]] = field(default_factory=dict)

    def take(self, done: Done) -> None:
        """Take in what is kept of some layers: of masks themselves, of factors their sizes."""
        self.errors |= done.errors
        for name, kept in done.tensors.items():
            if "mask" in kept:
                self.masks[name] = kept["mask"]
            else:
                self.factors[name] = storage(kept)


class Pipeline:
    """Prunes a model in place."""

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[Block],
        parts: Parts | Factoriser,
        sparsity: float,
        nm: tuple[int, int] | None = None,
        seed: int = 0,
        report: Callable[[int, int, float], None] = lambda done, total, seconds: None,
        errors: bool = False,
        held: Path | None = None,
        units: Units | None = None,
    ) -> None:
        """Take what is needed.

        Args:
            model: a causal language model.
            blocks: its decoder blocks.
            parts: of the method.
            sparsity: share of zeros over the linear layers, or of storage that is saved.
            nm: N and M of an N:M pattern.
            seed: of scores that draw numbers.
            report: is told blocks done, blocks in all, and seconds so far.
            errors: measure how far each layer's output is off, which needs its Gram matrix.
            held: folder that activations are held in; None: in memory.
            units: heads and channels that go as a whole; None: weights go one by one.
        """
        self.model, self.blocks, self.parts = model, blocks, parts
        self.sparsity, self.nm, self.seed = sparsity, nm, seed
        self.report, self.held = report, held
        self.measures = parts.measures | ({"gram"} if errors else set())
        self.with_errors, self.units = errors, units
        self.forward = 0.0

    def run(self, samples: Sequence[Tensor], folder: Path | None = None, key: str = "") -> Outcome:
        """Prune.

        Args:
            samples: token ids of the calibration sequences; none are looked at by a method that
                measures nothing.
            folder: keeps finished blocks; None: nothing is kept.
            key: of all that decides the outcome; kept blocks of another are not used. Blocks
                that are on disk are pruned again from what is kept, each time they are loaded.

        Raises:
            UserError: a layer saw NaN, or no token.
        """
        self.model.eval()
        kept = Kept(folder, key) if folder else None
        begin = time.perf_counter()
        outcome = Outcome(sparsities=self._sparsities(samples, kept))
        before = 0.0
        acts: Activations | None = None
        size = self.parts.group
        for number in range(0, len(self.blocks), size):
            unit = self.blocks[number : number + size]
            if kept and (done := kept.read(number)):
                if self._looks and not self.parts.spec.propagate:
                    acts = acts or self._start(samples, number)
                    for _ in unit:
                        self._timed(acts.carry)  # while they are not pruned
                before = done.spent
                self._restore(unit, done)
                outcome.resumed += len(unit)
            else:
                if self._looks:
                    acts = acts or self._start(samples, number)
                with ExitStack() as stack:
                    for block in unit:
                        stack.enter_context(block.loaded())
                    tensors, errors = self._unit(unit, acts, outcome.sparsities)
                done = Done(tensors, before + time.perf_counter() - begin, errors)
                if kept:
                    kept.write(number, done)
                    if unit[0].source:  # so that masks are not in memory, but on file
                        done = kept.read(number) or done
                self.report(number + len(unit), len(self.blocks), time.perf_counter() - begin)
            self._remember(unit, number, kept)
            outcome.take(done)
        outcome.seconds = {
            "pruning": before + time.perf_counter() - begin,
            "calibration_forward": self.forward,
        }
        return outcome

    @property
    def _looks(self) -> bool:
        """Whether text runs through the blocks."""
        return bool(self.measures) and self.sparsity > 0

    def _restore(self, unit: Sequence[Block], done: Done) -> None:
        """Do again what was done to some blocks, if they are in memory to stay."""
        if not unit[0].source:
            for layers in _alike(unit):
                self.parts.restore(layers, [done.tensors[linear.name] for linear in layers])

    def _remember(self, unit: Sequence[Block], number: int, kept: Kept | None) -> None:
        """Have finished blocks that are on disk pruned again, each time they are loaded."""
        for block in unit:
            if kept and isinstance(block.source, Disk):
                block.source.finished[block.name] = partial(self._again, block, unit, number, kept)

    def _again(self, block: Block, unit: Sequence[Block], number: int, kept: Kept) -> None:
        done = kept.read(number)
        assert done, "a finished block is in the run's folder"
        for layers in _alike(unit):
            first = done.tensors[layers[0].name]  # has what the others share
            for linear in layers:
                if linear.block == block.linears[0].block:
                    self.parts.restore([linear], [first | done.tensors[linear.name]])

    def _sparsities(self, samples: Sequence[Tensor], kept: Kept | None) -> dict[str, float]:
        """Of each layer, from the unpruned model; an interrupted run has found them already."""
        if kept and (found := kept.sparsities()):
            return found

        def dense_scores(score: Score, look: Callable[[int, list[Tensor]], None]) -> None:
            acts = self._timed(Activations, self.model, self.blocks, samples, self.held)
            for number, block in enumerate(self.blocks):
                with block.loaded():
                    inputs = self._timed(acts.measure, needs_of(score), carry=True)
                    seen = [score(self._weights(one, inputs[one.name])) for one in block.linears]
                look(number, seen)

        question = Question(
            blocks=self.blocks,
            sparsity=self.sparsity,
            spec=self.parts.spec,
            score=self.parts.score,
            dense_scores=dense_scores,
            weights=lambda linear: self._weights(linear, None),
        )
        if self.sparsity == 0:
            return {linear.name: 0.0 for linear in question.linears}
        found = self.parts.ratios(question)
        if kept:
            kept.write_sparsities(found)
        return found

    def _start(self, samples: Sequence[Tensor], number: int) -> Activations:
        """Activations in front of a block, the blocks before it being pruned already."""
        acts = self._timed(Activations, self.model, self.blocks, samples, self.held)
        while acts.at < number:
            self._timed(acts.carry)
        return acts

    def _unit(
        self, unit: Sequence[Block], acts: Activations | None, sparsities: dict[str, float]
    ) -> tuple[dict[str, Tensors], dict[str, float]]:
        """Settle the layers of some blocks, all from one pass of measures.

        Returns:
            What is kept of them, and how far their outputs are off where that is measured.
        """
        inputs = self._measure(unit, acts) if acts else {}
        chosen = self._chosen(unit, inputs)
        tensors: dict[str, Tensors] = {}
        errors: dict[str, float] = {}
        for layers in _alike(unit):
            seen = [(one, self._weights(one, inputs.pop(one.name, None))) for one in layers]
            dense = [weights.values.clone() for _, weights in seen] if self.with_errors else []
            settled = self.parts.settle(
                seen, sparsities[layers[0].name], self.nm, chosen.get(layers[0].name)
            )
            for (one, weights), before in zip(seen, dense, strict=False):
                errors[one.name] = output_error(weights.inputs.gram, before, one.weight.float())
            tensors |= {one.name: kept for one, kept in zip(layers, settled, strict=True)}
        if acts and self.parts.spec.propagate and unit[-1] is not self.blocks[-1]:
            for _ in unit:
                self._timed(acts.carry)
        return tensors, errors

    def _chosen(self, unit: Sequence[Block], inputs: dict[str, Inputs]) -> dict[str, Tensor]:
        """Masks of layers whose units go as a whole."""
        if not self.units or self.sparsity == 0:
            return {}

        def score(linear: Linear) -> Tensor:
            return self.parts.score(self._weights(linear, inputs.get(linear.name)))

        found: dict[str, Tensor] = {}
        for block in unit:
            found |= self.units.masks(block, score)
        return found

    def _measure(self, unit: Sequence[Block], acts: Activations) -> dict[str, Inputs]:
        """Of the inputs of some blocks as they are now.

        Activations are where they were before, unless the method does not carry on what its
        changed blocks make of them: then they are behind the blocks.
        """
        inputs: dict[str, Inputs] = {}
        back = self.parts.spec.propagate
        before = acts.hidden.copy() if back and len(unit) > 1 else acts.hidden
        for block in unit:
            carry = not back or block is not unit[-1]
            inputs |= self._timed(acts.measure, self.measures, carry=carry)
        if back:
            acts.hidden = before
            acts.at -= len(unit) - 1
        return inputs

    def _weights(self, linear: Linear, inputs: Inputs | None) -> Weights:
        weight = linear.weight
        return Weights(
            name=linear.name,
            values=weight.float(),
            inputs=inputs or Inputs(weight.shape[1], (), weight.device),
            spec=self.parts.spec,
            generator=generator("pruning", self.seed, linear.name),
        )

    def _timed(self, work: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        begin = time.perf_counter()
        found = work(*args, **kwargs)
        self.forward += time.perf_counter() - begin
        return found


def output_error(gram: Tensor | None, dense: Tensor, pruned: Tensor) -> float:
    """||X (W - W')^T||^2 / ||X W^T||^2 of a layer on its calibration inputs X.

    Args:
        gram: X^T X; None: nothing was measured, since nothing is pruned.
        dense: W (outputs, inputs).
        pruned: W'.
    """
    if gram is None:
        return 0.0
    lost, whole = (((w @ gram) * w).sum(dtype=torch.float64) for w in (dense - pruned, dense))
    return float(lost / whole) if whole > 0 else 0.0


def _alike(unit: Sequence[Block]) -> list[list[Linear]]:
    """The layers of some blocks, those of one kind together."""
    found: dict[str, list[Linear]] = {}
    for block in unit:
        for linear in block.linears:
            found.setdefault(linear.name.removeprefix(block.name), []).append(linear)
    return list(found.values())
