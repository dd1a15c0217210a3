"""What a language model is measured by, before and after pruning."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor, nn

from sparsebench.errors import UserError, bad_value
from sparsebench.llm.cloze import CHOICES, cloze, items_of
from sparsebench.llm.likelihood import Likelihood
from sparsebench.llm.models import LanguageModel
from sparsebench.llm.perplexity import perplexity
from sparsebench.llm.progress import Progress
from sparsebench.llm.zero_shot import ZeroShot

#: What a model can be measured by.
MEASURES = ("perplexity", "cloze", "zero_shot")


@dataclass(frozen=True)
class Evaluation:
    """All that measuring needs.

    Attributes:
        cfg: the config group ``eval``.
        likelihood: of text, by the model that is pruned or not yet.
        ids: tokens of the text.
        language: the model's tokenizer and context.
        items: of the cloze, if it is asked for.
        zero_shot: tasks of the harness, if they are asked for.
    """

    cfg: DictConfig
    likelihood: Likelihood
    ids: Tensor
    language: LanguageModel
    items: Tensor | None = None
    zero_shot: ZeroShot | None = None

    @classmethod
    def prepare(
        cls, cfg: DictConfig, likelihood: Likelihood, ids: Tensor, language: LanguageModel
    ) -> Evaluation:
        """Make sure that all that is asked for can be measured.

        Raises:
            UserError: an unknown measure, too short a text, or no harness or data of it.
        """
        for name in cfg.measures:
            if name not in MEASURES:
                raise bad_value("eval.measures", name, f"of {', '.join(MEASURES)}", MEASURES)
        needed = {
            "measures": True,
            "lengths": "perplexity" in cfg.measures,
            "tasks": "zero_shot" in cfg.measures,
        }
        for key in (key for key, asked in needed.items() if asked and not cfg[key]):
            raise bad_value(f"eval.{key}", [], "at least one is needed")
        if "perplexity" in cfg.measures and len(ids) < max(cfg.lengths):
            allowed = f"'{cfg.dataset}' ({cfg.split}) has {len(ids)} tokens"
            raise bad_value("eval.lengths", list(cfg.lengths), allowed)
        items, tasks = None, None
        if "cloze" in cfg.measures:
            if language.context and cfg.context + cfg.continuation > language.context:
                allowed = f"with eval.continuation at most the model's context {language.context}"
                raise bad_value("eval.context", cfg.context, allowed)
            items = items_of(ids, cfg.questions, cfg.context, cfg.continuation)
        if "zero_shot" in cfg.measures:
            if language.disk:
                raise UserError(
                    "eval.measures=[zero_shot]: the harness needs the whole model in memory; "
                    "model.weights=memory, or eval=cloze"
                )
            tasks = ZeroShot.of(list(cfg.tasks), cfg.limit)
        return cls(cfg, likelihood, ids, language, items, tasks)

    def held_in(self, folder: Path | None) -> Evaluation:
        """The same, with activations held in a folder where blocks come from disk."""
        return replace(self, likelihood=replace(self.likelihood, folder=folder))

    def of(self, model: nn.Module) -> Evaluation:
        """The same of another model, which is in memory."""
        return replace(self, likelihood=replace(self.likelihood, model=model, blocks=()))

    def measure(self, say: Progress, suffix: str = "") -> dict[str, Any]:
        """Measure the model as it is.

        Args:
            say: is told what is done.
            suffix: of the metrics' names, such as ``_dense``.
        """
        metrics: dict[str, Any] = {}
        if "perplexity" in self.cfg.measures:
            metrics |= self._perplexity(say, suffix)
        if self.items is not None:
            report = say.of(f"cloze{suffix}")
            share = cloze(self.likelihood, self.items, self.cfg.continuation, report)
            low, high = share.interval
            found = {"accuracy": share.value, "low": low, "high": high, "chance": 1 / CHOICES}
            metrics |= {f"cloze{suffix}/{name}": value for name, value in found.items()}
            metrics["cloze/items"] = share.items
        if self.zero_shot:
            language = replace(self.language, model=self.likelihood.model)
            found = self.zero_shot.measure(language)
            metrics |= {f"zero_shot{suffix}/{name}": value for name, value in found.items()}
        return metrics

    def _perplexity(self, say: Progress, suffix: str) -> dict[str, Any]:
        metrics: dict[str, Any] = {}
        for length in self.cfg.lengths:
            name = f"{self.cfg.dataset}@{length}"
            report = say.of(f"perplexity{suffix} at {length}")
            found = perplexity(self.likelihood, self.ids, length, self.cfg.max_segments, report)
            metrics[f"perplexity{suffix}/{name}"] = found.value
            metrics[f"segments/{name}"] = found.segments
        return metrics
