"""What a language model is measured by, before and after pruning."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from sparsebench.llm.likelihood import Likelihood
from sparsebench.llm.perplexity import perplexity
from sparsebench.llm.progress import Progress


@dataclass(frozen=True)
class Evaluation:
    """All that measuring needs.

    Attributes:
        cfg: the config group ``eval``.
        likelihood: of text, by the model that is pruned or not yet.
        ids: tokens of the text.
    """

    cfg: DictConfig
    likelihood: Likelihood
    ids: Tensor

    def held_in(self, folder: Path | None) -> Evaluation:
        """The same, with activations held in a folder where blocks come from disk."""
        return replace(self, likelihood=replace(self.likelihood, folder=folder))

    def measure(self, say: Progress, suffix: str = "") -> dict[str, Any]:
        """Measure the model as it is.

        Args:
            say: is told what is done.
            suffix: of the metrics' names, such as ``_dense``.
        """
        metrics: dict[str, Any] = {}
        for length in self.cfg.lengths:
            name = f"{self.cfg.dataset}@{length}"
            report = say.of(f"perplexity{suffix} at {length}")
            found = perplexity(self.likelihood, self.ids, length, self.cfg.max_segments, report)
            metrics[f"perplexity{suffix}/{name}"] = found.value
            metrics[f"segments/{name}"] = found.segments
        return metrics
