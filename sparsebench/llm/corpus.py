"""Text as training data: sequences of tokens, cut anew at each pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsebench.data.images import DataSets
from sparsebench.data.options import Options
from sparsebench.data.seeding import generator
from sparsebench.data.tensors import TensorRows, fingerprint
from sparsebench.errors import bad_value
from sparsebench.llm.models import LanguageModel
from sparsebench.llm.text import check_apart, load_text, tokens_of
from sparsebench.sparsity.fields import read_options
from sparsebench.sparsity.spec import whole


@dataclass(frozen=True, eq=False)
class Segments:
    """A text in segments of one length, which do not overlap within a pass.

    Attributes:
        ids: tokens of the text, int64 (tokens).
        length: tokens of a segment.
        number: of samples of an epoch, if it is not one pass over the text.
        shift: cut each pass at another place, so that no two see the same segments.
    """

    ids: Tensor
    length: int
    number: int | None = None
    shift: bool = True

    @property
    def whole(self) -> int:
        """Segments of one pass, wherever it begins."""
        spare = self.length - 1 if self.shift else 0
        return max((len(self.ids) - spare) // self.length, 1)

    def __len__(self) -> int:
        return self.number or self.whole

    def draw(self, seed: int, epoch: int) -> Tensor:
        """Where each pass of an epoch begins (int64 [passes])."""
        passes = -(-len(self) // self.whole)
        room = min(self.length, len(self.ids) - self.length + 1) if self.shift else 1
        return torch.randint(room, (passes,), generator=generator("shift", seed, epoch))

    def batches(
        self, positions: Iterable[Tensor], draw: Any = None
    ) -> Iterator[tuple[Tensor, ...]]:
        """Tokens (batch, length) of the segments at each tensor of positions."""
        span = torch.arange(self.length)
        for each in positions:
            first = (each % self.whole) * self.length
            if draw is not None:
                first = first + draw[each // self.whole]
            yield (self.ids[first.unsqueeze(1) + span],)


@dataclass(frozen=True)
class Texts:
    """Options of data that is text.

    Attributes:
        dataset: one that ``calibration`` and ``eval`` know, or a folder; null: ``data.name``.
        train: split to train on.
        validation: split to validate on after each epoch, unless ``data.validation=0``.
        test: split to test on.
        length: tokens of a sequence.
    """

    dataset: str | None = None
    train: str = "train"
    validation: str = "validation"
    test: str = "test"
    length: int = whole(256, 2, "tokens of a sequence")


def corpus(config: Mapping[str, Any]) -> Texts:
    """What the config group ``data`` says of a text; ``args`` are those of :class:`Texts`."""
    return read_options(Texts, config.get("args") or {}, "data.args")


def data_sets(config: Mapping[str, Any], texts: Texts, language: LanguageModel) -> DataSets:
    """Training, validation and test sequences of a text.

    Args:
        config: the group ``data``.
        texts: which splits, and how long a sequence is.
        language: whose tokens they are.

    Raises:
        UserError: no such text, one that is too short, overlapping splits, or a length beyond
            the model's context.
    """
    options = Options.of(config)
    if options.subset is not None:
        raise bad_value("data.subset", options.subset, "a text has no subset")
    if language.context and texts.length > language.context:
        allowed = f"from 2 to the model's context of {language.context} tokens"
        raise bad_value("data.args.length", texts.length, allowed)
    name = texts.dataset or options.name
    splits = [texts.train, *([texts.validation] if options.validation else []), texts.test]
    found = [load_text("data.args", name, split, config) for split in splits]
    for text in found[1:]:
        check_apart(found[0], text, "data.args", "data.args")
    ids = [tokens_of(text.joined, language.tokenizer, language.vocabulary) for text in found]
    for text, tokens in zip(found, ids, strict=True):
        if len(tokens) < 2 * texts.length:
            allowed = f"'{text.name}' ({text.split}) has {len(tokens)} tokens"
            raise bad_value("data.args.length", texts.length, allowed)
    rest = [rows(tokens, texts.length) for tokens in ids[1:]]
    return DataSets(
        name=options.name,
        num_classes=language.vocabulary,
        input_shape=(texts.length,),
        train=Segments(ids[0], texts.length, shift=options.augmented),
        validation=rest[0] if options.validation else None,
        test=rest[-1],
        class_names=(),
        fingerprint=fingerprint(*(TensorRows((tokens,)) for tokens in ids)),
    )


def rows(ids: Tensor, length: int) -> TensorRows:
    """Consecutive segments, as perplexity is measured on; what is left at the end is dropped."""
    number = len(ids) // length
    return TensorRows((ids[: number * length].view(number, length),))
