"""Prune a trained language model on calibration text, and measure its perplexity before and after.

The model is pruned block by block (:mod:`sparsebench.llm.pipeline`) and, with a ``recovery``, then
trained (:mod:`sparsebench.llm.recovery`). A killed run goes on at its block, or its step; what is
written is ``result.json`` and, where asked for, the packed masks (``save_masks``) and the model as
a folder of transformers (``save_model``).
"""

from __future__ import annotations

import copy
import hashlib
import shutil
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor, nn

from sparsebench.errors import UserError, bad_value
from sparsebench.llm.building import language_model, on_device
from sparsebench.llm.card import card
from sparsebench.llm.choose import undivided
from sparsebench.llm.counts import counts, size_of
from sparsebench.llm.evaluate import Evaluation
from sparsebench.llm.export import save_factors, save_masks, save_model
from sparsebench.llm.factoriser import Factoriser, method_of, product_counts
from sparsebench.llm.layers import Block, find_blocks, others
from sparsebench.llm.likelihood import Likelihood
from sparsebench.llm.models import LanguageModel
from sparsebench.llm.parts import Parts
from sparsebench.llm.pipeline import Outcome, Pipeline
from sparsebench.llm.progress import Progress
from sparsebench.llm.recovery.outcome import Recovered
from sparsebench.llm.recovery.plan import Plan, plan
from sparsebench.llm.structured import Units, units_of
from sparsebench.llm.text import calibration_samples, check_apart, load_text, tokens_of
from sparsebench.sparsity.nm_rules import is_nm
from sparsebench.tasks.build import container
from sparsebench.training.outcome import peak_memory

BLOCKS = "blocks"  # finished blocks of a run that goes on


@dataclass
class Prepared:
    """All that a run needs, checked before anything is written."""

    language: LanguageModel
    blocks: list[Block]
    method: Parts | Factoriser
    nm: tuple[int, int] | None
    units: Units | None
    samples: list[Tensor]
    evaluation: Evaluation
    recovery: Plan | None
    notes: list[str]
    seconds: float

    @property
    def kind(self) -> dict[str, str]:
        """Of the kind of sparsity, what pattern and recovery make other than the method alone."""
        kind = {}
        if self.nm:
            kind["pattern"] = ":".join(map(str, self.nm))
        if self.units:
            kind["pattern"] = "heads and channels"
        if self.recovery and self.recovery.spec.chooses:
            kind |= {
                "start": "dense weights kept",
                "masks": "dynamic",
                "dense_gradient": "each step",
            }
        return kind


def prepare(cfg: DictConfig) -> Prepared:
    """Load model and text, and refuse what can't work.

    Raises:
        UserError: naming key, value and what is allowed.
    """
    begin = time.perf_counter()
    parts = method_of(cfg)
    nm = _pattern(cfg)
    if cfg.model.weights == "disk":
        _check_disk(cfg)
    data, notes = container(cfg.data), []
    test = load_text("eval", cfg.eval.dataset, cfg.eval.split, data)
    text = None
    if parts.looks_at_text or cfg.eval.errors or cfg.recovery.score == "wanda":
        text = load_text("calibration", cfg.calibration.dataset, cfg.calibration.split, data)
        check_apart(text, test)
        notes.append(f"calibration: {text.name} ({text.split})")
    language = on_device(cfg, language_model(cfg))
    blocks = find_blocks(language.model, language.disk)
    if left := others(blocks):
        notes.append(f"dense, since in no linear layer: {', '.join(left)}")
    if nm and cfg.sparsity:
        _check_widths(blocks, nm[1])
    units = units_of(cfg, language.model, blocks)
    if units:
        notes.append(units.said)
    _check_context(cfg, language, parts)
    samples: list[Tensor] = []
    if text:
        samples = calibration_samples(
            text, language.tokenizer, language.vocabulary, container(cfg.calibration), cfg.seed
        )
    ids = tokens_of(test.joined, language.tokenizer, language.vocabulary)
    most = cfg.calibration.samples * cfg.calibration.length
    likelihood = Likelihood(language.model, blocks, most)
    evaluation = Evaluation.prepare(cfg.eval, likelihood, ids, language)
    recovery = plan(cfg, language, blocks, test)
    seconds = time.perf_counter() - begin
    return Prepared(
        language, blocks, parts, nm, units, samples, evaluation, recovery, notes, seconds
    )


def _pattern(cfg: DictConfig) -> tuple[int, int] | None:
    structure = cfg.structure
    if structure.name not in ("unstructured", "nm", "channel"):
        raise UserError(
            f"structure={structure.name}: task=prune_llm knows unstructured and N:M patterns, and "
            "structure=channel, by which heads and channels go"
        )
    if not is_nm(structure):
        return None
    if cfg.method.ratios != "uniform":
        raise UserError(
            f"method.ratios={cfg.method.ratios}: with an N:M structure all layers have the "
            "pattern's sparsity; use method.ratios=uniform"
        )
    return int(structure.n), int(structure.m)


def _check_disk(cfg: DictConfig) -> None:
    """Refuse what looks at several blocks at once, or trains them, while they are on disk."""
    refused = {
        "structure": cfg.structure.name == "channel",
        "recovery": cfg.recovery.name != "none",
    }
    for group in (group for group, asked in refused.items() if asked):
        name = cfg[group].name
        raise UserError(f"model.weights=disk: {group}={name} needs all blocks in memory")


def _check_widths(blocks: list[Block], m: int) -> None:
    for linear in (linear for block in blocks for linear in block.linears):
        width = linear.weight.shape[1]
        if width % m:
            raise undivided(linear.name, width, m)


def _check_context(cfg: DictConfig, language: LanguageModel, parts: Parts | Factoriser) -> None:
    longest = language.context
    lengths = []
    if "perplexity" in cfg.eval.measures:
        lengths = [("eval.lengths", length) for length in cfg.eval.lengths]
    if parts.looks_at_text:
        lengths.append(("calibration.length", cfg.calibration.length))
    for key, length in lengths:
        if length < 2 or (longest and length > longest):
            most = f"to the model's context of {longest} tokens" if longest else "upwards"
            raise bad_value(key, length, f"from 2 {most}")


def run(cfg: DictConfig, folder: Path, prepared: Prepared) -> dict[str, Any]:
    """Measure, prune, measure; give what goes into ``result.json``."""
    say = Progress(not cfg.quiet)
    metrics: dict[str, Any] = {}
    held = folder / BLOCKS if cfg.calibration.activations == "disk" else None
    evaluation = prepared.evaluation.held_in(held)
    begin = time.perf_counter()
    if cfg.eval.dense:
        metrics |= evaluation.measure(say, "_dense")
    testing = time.perf_counter() - begin
    teacher = unpruned(prepared)
    pipeline = Pipeline(
        prepared.language.model,
        prepared.blocks,
        prepared.method,
        cfg.method.get("compression", cfg.sparsity),
        prepared.nm,
        cfg.seed,
        report=lambda done, total, spent: say("pruning", done, total, spent),
        errors=cfg.eval.errors,
        held=held,
        units=prepared.units,
    )
    outcome = pipeline.run(prepared.samples, folder / BLOCKS, _key(cfg, prepared))
    recovered = None
    if prepared.recovery:
        recovered, found = _recover(cfg, folder, prepared, outcome, teacher, say)
        metrics |= found
    language = prepared.language
    if prepared.units:
        language = replace(language, model=prepared.units.shrink(language.model, outcome.masks))
        evaluation = evaluation.of(language.model)
    begin = time.perf_counter()
    metrics |= evaluation.measure(say)
    testing += time.perf_counter() - begin
    if recovered:
        recovered.take_off()
    counted, layers = counts(
        prepared.language.model, prepared.blocks, outcome.sparsities, prepared.nm
    )
    for name, error in outcome.errors.items():
        layers[name]["error"] = error
    metrics |= counted
    if prepared.units:
        metrics |= size_of(language.model)
    if outcome.factors:  # whose bytes are not those of zeros
        metrics = {key: value for key, value in metrics.items() if not key.startswith("bytes/")}
        metrics |= product_counts(outcome.factors, layers, metrics["flops/token_dense"])
    metrics |= {f"seconds/{name}": value for name, value in outcome.seconds.items()}
    metrics |= {
        "seconds/testing": testing,
        "seconds/setup": prepared.seconds,
        "memory/peak_bytes": peak_memory(),
        "calibration/tokens": sum(map(len, prepared.samples)),
    }
    notes = [*prepared.notes, *(recovered.notes if recovered else [])]
    if cfg.save_masks:
        save_masks(folder / "masks.safetensors", outcome.masks, prepared.blocks)
    if cfg.save_model:
        text = card(cfg, metrics, notes)
        more = recovered.export if recovered else lambda fresh: None
        if outcome.factors:
            more = partial(save_factors, folder / BLOCKS)
        save_model(folder / "model", language, prepared.blocks, outcome.masks, text, more)
    shutil.rmtree(folder / BLOCKS, ignore_errors=True)
    for path in folder.glob("*.ckpt"):  # as large as the model three times
        path.unlink()
    if outcome.resumed:
        notes.append(f"went on at block {outcome.resumed} of {len(prepared.blocks)}")
    return {"metrics": metrics, "layers": layers, "notes": notes}


def unpruned(prepared: Prepared) -> nn.Module | None:
    """A copy of the model before it is pruned, if recovery looks at it."""
    if not (prepared.recovery and prepared.recovery.spec.needs_dense):
        return None
    return copy.deepcopy(prepared.language.model).eval().requires_grad_(False)


def _recover(
    cfg: DictConfig,
    folder: Path,
    prepared: Prepared,
    outcome: Outcome,
    teacher: nn.Module | None,
    say: Progress,
) -> tuple[Recovered, dict[str, Any]]:
    """Measure the pruned model, train it, and give what that gave."""
    from sparsebench.llm.recovery.pruned import Pruned
    from sparsebench.llm.recovery.run import recover

    assert prepared.recovery is not None
    assert isinstance(prepared.method, Parts)  # others leave no masks, and are refused
    metrics = prepared.evaluation.measure(say, "_pruned")
    pruned = Pruned(
        prepared.language, prepared.blocks, outcome, prepared.method.spec, prepared.nm,
        prepared.samples, teacher,
    )  # fmt: skip
    recovered = recover(cfg, folder, prepared.recovery, pruned)
    return recovered, metrics | recovered.metrics


def _key(cfg: DictConfig, prepared: Prepared) -> str:
    """All that decides what a finished block is, beside the run's own identity."""
    total = hashlib.sha256(f"{prepared.language.source} {len(prepared.blocks)}".encode())
    for sample in prepared.samples:
        total.update(sample.numpy().tobytes())
    for block, number in ((prepared.blocks[0], 0), (prepared.blocks[-1], -1)):
        with block.loaded():
            weight = block.linears[number].weight.float().cpu().contiguous()
        total.update(weight.numpy().tobytes())
    return total.hexdigest()
