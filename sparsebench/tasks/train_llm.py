"""Train a language model with a sparsity method, and save it as any other of transformers.

From random weights (``model=char_gpt``), or from trained ones (``model=hf_lm``). Which weights are
sparse says the selector, by default the linear layers of the blocks (``selector=blocks``).
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
from sparsebench.sparsity.flops import LayerFlops, layer_flops
from sparsebench.tasks.build import container
from sparsebench.tasks.task import Prepared, Shape, Task, entry

if TYPE_CHECKING:
    from sparsebench.training.learner import Learner


class TrainLLM(Task):
    """Learns to tell the next token; tested by perplexity on whole segments."""

    @cached_property
    def language(self) -> LanguageModel:
        """The model that is trained, and its tokenizer."""
        if self.cfg.method.get("shrink"):
            raise UserError(
                f"method={self.cfg.method.name}: task=train_llm has no narrower language models; "
                "model.args.hidden=... trains one"
            )
        torch.manual_seed(self.cfg.seed)
        return language_model(self.cfg)

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
        """The language model."""
        return self.language.model, None

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
