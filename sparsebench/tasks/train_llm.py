"""Train a language model with a sparsity method, and save it as any other of transformers.

From random weights (``model=char_gpt``, ``model=char_lstm``), or from trained ones
(``model=hf``). Which weights are sparse says the selector, by default the linear layers of the
blocks (``selector=blocks``).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sparsebench.config.importing import resolve
from sparsebench.data import DataSets
from sparsebench.errors import UserError
from sparsebench.files import check_room
from sparsebench.llm.building import language_model
from sparsebench.llm.corpus import Texts, data_sets
from sparsebench.llm.models import LanguageModel, save_folder
from sparsebench.models import matched_width
from sparsebench.sparsity.flops import LayerFlops, layer_flops
from sparsebench.sparsity.selector import select
from sparsebench.sparsity.spec import SelectorSpec
from sparsebench.tasks.build import container
from sparsebench.tasks.task import Prepared, Shape, Task, entry

if TYPE_CHECKING:
    from sparsebench.training.learner import Learner


class TrainLLM(Task):
    """Learns to tell the next token; tested by perplexity on whole segments."""

    @cached_property
    def language(self) -> LanguageModel:
        """The model that is trained, narrower where the method says so, and its tokenizer."""
        width = self._narrower() if self.cfg.method.get("shrink") else None
        torch.manual_seed(self.cfg.seed)
        return language_model(self.cfg, width)

    def _narrower(self) -> float:
        """The width at which there are as many weights as ``sparsity`` leaves."""
        selector = SelectorSpec(**container(self.cfg.selector))

        def at(width: float | None) -> nn.Module:
            return language_model(self.cfg, width).model

        def weights(model: nn.Module) -> int:
            return sum(p.numel() for p in select(model, selector).values())

        with torch.device("meta"):
            full = weights(at(None))
        return matched_width(at, round((1.0 - self.cfg.sparsity) * full), weights)

    def load(self) -> DataSets:
        """Sequences of a text, in the model's tokens."""
        config = container(self.cfg.data)
        target, texts = config["_target_"], None
        if target:
            builder: Any = resolve(str(target), "data._target_", list(self.cfg.allow))
            texts = builder(config)
        if not isinstance(texts, Texts):
            raise UserError(
                f"data={config['name']}: task=train_llm needs a text, such as data=tinyshakespeare"
            )
        return data_sets(config, texts, self.language)

    def network(self, like: tuple[Shape, int]) -> tuple[nn.Module, float | None]:
        """The language model, and the FLOPs of the wide one if it is narrower."""
        model = self.language.model
        if not self.cfg.method.get("shrink"):
            return model, None
        with torch.device("meta"):
            full = language_model(self.cfg).model
        return model, float(self.flops(full, like[0]).total)

    def check(self, prepared: Prepared) -> None:
        """Refuse to save what transformers could not read."""
        if self.cfg.save_model and not hasattr(prepared.model, "save_pretrained"):
            raise UserError(
                f"save_model=true: model={self.cfg.model.name} is none of transformers, which "
                "would have to read it; its weights are in last.ckpt"
            )

    def flops(
        self, model: nn.Module, shape: Shape, *, names: Iterable[str] | None = None
    ) -> LayerFlops:
        """Of a whole sequence, which is a sample."""
        return layer_flops(model, shape, names=names, dtype=torch.long)

    def learner(self, prepared: Prepared) -> Learner:
        """A learner of next tokens."""
        from sparsebench.training.language import NextToken

        return NextToken(prepared.model, self.cfg, prepared.method)

    def run(self, folder: Path, prepared: Prepared) -> dict[str, Any]:
        """Train, test, and save the model where asked for (``save_model``)."""
        found = super().run(folder, prepared)
        if self.cfg.save_model:
            model = prepared.model
            check_room(folder, sum(p.numel() * p.element_size() for p in model.parameters()))
            save_folder(model, self.language.tokenizer, folder / "model")
        return found


prepare, run = entry(TrainLLM)
