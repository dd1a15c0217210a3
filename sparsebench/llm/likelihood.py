"""How likely a language model finds text: the loss of each token, given those before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsebench.llm.activations import Activations
from sparsebench.llm.layers import Block, device_of

#: Positions whose logits are held at a time: over a large vocabulary they are the most memory.
CHUNK = 128


@dataclass(frozen=True)
class Likelihood:
    """A model that is asked how likely sequences are.

    Attributes:
        model: a causal language model of transformers.
        blocks: its blocks, if their weights may be on disk: all sequences go through one block
            before the next is loaded.
        tokens: that are on their way through the blocks at a time; None: all.
        folder: where they are held meanwhile; None: in memory.
    """

    model: nn.Module
    blocks: Sequence[Block] = ()
    tokens: int | None = None
    folder: Path | None = None

    @torch.no_grad()
    def losses(self, sequences: Sequence[Tensor]) -> Iterator[Tensor]:
        """Of each sequence, the cross-entropy of its tokens but the first, float32 (length - 1).

        Args:
            sequences: token ids, all of one length where blocks are on disk.
        """
        if not sequences:
            return
        if not any(block.source for block in self.blocks):
            of = _losses(self.model, sequences[0][:8])
            yield from map(of, sequences)
            return
        most = len(sequences)
        if self.tokens is not None:
            most = max(1, self.tokens // len(sequences[0]))
        for first in range(0, len(sequences), most):
            yield from self._by_block(sequences[first : first + most])

    def _by_block(self, sequences: Sequence[Tensor]) -> Iterator[Tensor]:
        acts = Activations(self.model, self.blocks, sequences, self.folder)
        for _ in self.blocks:
            acts.carry()
        probe = sequences[0][:8]
        with acts.ended(0, len(probe)):
            of = _losses(self.model, probe)
        for number, sequence in enumerate(sequences):
            with acts.ended(number):
                yield of(sequence)


def _losses(model: nn.Module, probe: Tensor) -> Callable[[Tensor], Tensor]:
    """The losses of a sequence, by parts of the head if that gives the model's own logits.

    Some models do more than a matrix product behind their blocks (Gemma's soft cap, Cohere's
    scale); those are asked for all logits.
    """
    inner: Any = getattr(model, "base_model", None)
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    device = device_of(model)
    probe = probe.unsqueeze(0).to(device)
    plain = False
    if inner is not None and inner is not model and head is not None:
        seen: list[Tensor] = []
        hook = inner.register_forward_hook(lambda module, args, output: seen.append(output[0]))
        whole = model(input_ids=probe, use_cache=False).logits
        hook.remove()
        if seen and seen[0].shape[-1] == head.weight.shape[-1]:
            found = head(seen[0])
            plain = bool(torch.allclose(found, whole, rtol=1e-3, atol=1e-3, equal_nan=True))

    def of(sequence: Tensor) -> Tensor:
        segment = sequence.unsqueeze(0).to(device)
        targets = segment[0, 1:]
        if not plain:
            return _cross_entropy(model(input_ids=segment, use_cache=False).logits[0, :-1], targets)
        assert inner is not None
        assert head is not None
        hidden = inner(input_ids=segment, use_cache=False)[0][0, :-1]
        pairs = zip(torch.split(hidden, CHUNK), torch.split(targets, CHUNK), strict=True)
        return torch.cat([_cross_entropy(head(some), wanted) for some, wanted in pairs])

    return of


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.float(), targets, reduction="none")
