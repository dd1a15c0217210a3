"""Pruning block by block: measure, prune, carry the activations on, remember, next.

Each block sees what the pruned blocks before it make of the calibration text (or, with
``propagate: false``, the unpruned ones). A finished block is written to the run's folder, so that
a killed run goes on at the block where it was; activations are computed again by one pass.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sparsebench.files import read_json, write_atomically, write_json
from sparsebench.llm.activations import Activations
from sparsebench.llm.choose import Pattern
from sparsebench.llm.inputs import Inputs
from sparsebench.llm.layers import Block, Linear
from sparsebench.llm.parts import Parts
from sparsebench.llm.ratios import Question
from sparsebench.llm.scores import Score, Weights
from sparsebench.sparsity.masks import pack, unpack
from sparsebench.sparsity.scores import needs_of

Result = TypeVar("Result")


@dataclass
class Outcome:
    """What pruning gave beside the pruned model.

    Attributes:
        masks: packed bits by name of the weight, in the shape the model holds it.
        sparsities: what each layer was given.
        seconds: of pruning in all (``pruning``), and of its passes (``calibration_forward``).
        resumed: number of blocks that an interrupted run had done.
    """

    masks: dict[str, Tensor] = field(default_factory=dict)
    sparsities: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    resumed: int = 0


class Pipeline:
    """Prunes a model in place."""

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[Block],
        parts: Parts,
        sparsity: float,
        nm: tuple[int, int] | None = None,
        seed: int = 0,
        report: Callable[[int, int, float], None] = lambda done, total, seconds: None,
    ) -> None:
        """Take what is needed.

        Args:
            model: a causal language model.
            blocks: its decoder blocks.
            parts: of the method.
            sparsity: share of zeros over the linear layers.
            nm: N and M of an N:M pattern.
            seed: of scores that draw numbers.
            report: is told blocks done, blocks in all, and seconds so far.
        """
        self.model, self.blocks, self.parts = model, blocks, parts
        self.sparsity, self.nm, self.seed = sparsity, nm, seed
        self.report = report
        self.forward = 0.0

    def run(self, samples: Sequence[Tensor], folder: Path | None = None, key: str = "") -> Outcome:
        """Prune.

        Args:
            samples: token ids of the calibration sequences; none are looked at by a method that
                measures nothing.
            folder: keeps finished blocks; None: nothing is kept.
            key: of all that decides the outcome; kept blocks of another are not used.

        Raises:
            UserError: a layer saw NaN, or no token.
        """
        self.model.eval()
        kept = Kept(folder, key) if folder else None
        begin = time.perf_counter()
        outcome = Outcome(sparsities=self._sparsities(samples, kept))
        before = 0.0
        acts: Activations | None = None
        for number, block in enumerate(self.blocks):
            if kept and (found := kept.read(number)):
                tensors, before = found
                outcome.masks |= _restore(block, tensors)
                outcome.resumed += 1
                continue
            if self.parts.measures and self.sparsity > 0:
                acts = acts or self._start(samples, number)
            masks = self._block(block, acts, outcome.sparsities)
            outcome.masks |= masks
            spent = before + time.perf_counter() - begin
            if kept:
                kept.write(number, block, masks, spent, self.parts.solver is not None)
            self.report(number + 1, len(self.blocks), time.perf_counter() - begin)
        outcome.seconds = {
            "pruning": before + time.perf_counter() - begin,
            "calibration_forward": self.forward,
        }
        return outcome

    def _sparsities(self, samples: Sequence[Tensor], kept: Kept | None) -> dict[str, float]:
        """Of each layer, from the unpruned model; an interrupted run has found them already."""
        if kept and (found := kept.sparsities()):
            return found

        def dense_scores(score: Score, look: Callable[[int, list[Tensor]], None]) -> None:
            acts = self._timed(Activations, self.model, self.blocks, samples)
            for number, block in enumerate(self.blocks):
                inputs = self._timed(acts.measure, needs_of(score), carry=True)
                look(number, [score(self._weights(one, inputs[one.name])) for one in block.linears])

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
        acts = self._timed(Activations, self.model, self.blocks, samples)
        while acts.at < number:
            self._timed(acts.carry)
        return acts

    def _block(
        self, block: Block, acts: Activations | None, sparsities: dict[str, float]
    ) -> dict[str, Tensor]:
        """Prune the layers of a block, all from one pass of measures; their packed masks."""
        inputs: dict[str, Inputs] = {}
        carried = self.parts.spec.propagate
        if acts:
            inputs = self._timed(acts.measure, self.parts.measures, carry=not carried)
        masks = {}
        for linear in block.linears:
            weights = self._weights(linear, inputs.pop(linear.name, None))
            spec = self.parts.spec
            pattern = Pattern(sparsities[linear.name], spec.scope, spec.columns, self.nm)
            values, mask = self.parts.prune(weights, pattern)
            stored = mask.t() if linear.transposed else mask
            masks[linear.name] = pack(stored.contiguous())
            with torch.no_grad():
                if values is not weights.values:
                    linear.weight.copy_(values)
                linear.weight.masked_fill_(~mask, 0.0)
        if acts and carried and block is not self.blocks[-1]:
            self._timed(acts.carry)
        return masks

    def _weights(self, linear: Linear, inputs: Inputs | None) -> Weights:
        number = torch.Generator().manual_seed(self.seed * 1_000_003 + linear.block)
        weight = linear.weight
        return Weights(
            name=linear.name,
            values=weight.float(),
            inputs=inputs or Inputs(weight.shape[1], (), weight.device),
            spec=self.parts.spec,
            generator=number,
        )

    def _timed(self, work: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        begin = time.perf_counter()
        found = work(*args, **kwargs)
        self.forward += time.perf_counter() - begin
        return found


class Kept:
    """Finished blocks of a run in its folder."""

    def __init__(self, folder: Path, key: str) -> None:
        """Keep what is there if it is of the same key, else begin anew."""
        self.folder, self.key = folder, key
        if read_json(folder / "key.json") != key:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_json(folder / "key.json", key)

    def sparsities(self) -> dict[str, float] | None:
        """Of each layer, if they were found."""
        return read_json(self.folder / "sparsities.json")

    def write_sparsities(self, sparsities: dict[str, float]) -> None:
        """Keep them."""
        write_json(self.folder / "sparsities.json", sparsities)

    def read(self, number: int) -> tuple[dict[str, Tensor], float] | None:
        """Tensors of a finished block and the seconds spent up to it."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.folder / f"{number:04d}.safetensors"
        spent = read_json(path.with_suffix(".json"))
        if spent is None or not path.exists():
            return None
        try:
            return load_file(path), spent
        except SafetensorError:  # damaged: done again
            return None

    def write(
        self, number: int, block: Block, masks: dict[str, Tensor], spent: float, weights: bool
    ) -> None:
        """Keep the masks of a block, and its weights where they have changed."""
        from safetensors.torch import save

        tensors = {f"mask/{name}": bits.cpu() for name, bits in masks.items()}
        for linear in block.linears if weights else ():
            tensors[f"weight/{linear.name}"] = linear.weight.cpu().contiguous()
        path = self.folder / f"{number:04d}.safetensors"
        content = save(tensors)
        write_atomically(path, lambda file: file.write(content))
        write_json(path.with_suffix(".json"), spent)


def _restore(block: Block, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Prune a block as it was before; its packed masks."""
    masks = {}
    with torch.no_grad():
        for linear in block.linears:
            if (weight := tensors.get(f"weight/{linear.name}")) is not None:
                linear.weight.copy_(weight)
            masks[linear.name] = bits = tensors[f"mask/{linear.name}"]
            stored = linear.weight.t() if linear.transposed else linear.weight
            stored.masked_fill_(~unpack(bits.to(stored.device), stored.shape), 0.0)
    return masks
