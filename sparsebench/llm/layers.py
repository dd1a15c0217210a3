"""Decoder blocks of a causal language model and their linear layers, found by structure.

No list of architectures: the blocks are the outermost ``ModuleList`` of like modules that holds
most of the linear weights, which is so for LLaMA, OPT, GPT-2, GPT-NeoX, Qwen, Mistral and Phi.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from sparsebench.errors import UserError


@dataclass(frozen=True)
class Linear:
    """A linear layer of a block.

    Attributes:
        name: of its weight among the model's parameters.
        module: ``nn.Linear``, or GPT-2's ``Conv1D``, whose weight is (inputs, outputs).
        block: number of the block it is in.
    """

    name: str
    module: nn.Module
    block: int

    @property
    def transposed(self) -> bool:
        """Whether the weight is stored as (inputs, outputs)."""
        return not isinstance(self.module, nn.Linear)

    @property
    def weight(self) -> Tensor:
        """The weight as (outputs, inputs): a view of what the model computes with."""
        stored = self.module.weight
        assert isinstance(stored, Tensor)
        return stored.detach().t() if self.transposed else stored.detach()

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape that the model's own parameter has."""
        shape = tuple(self.weight.shape)
        return shape[::-1] if self.transposed else shape


class Source(Protocol):
    """Where the weights of blocks are while nobody works with them."""

    def load(self, block: Block) -> None:
        """Bring them into the model."""

    def drop(self, block: Block) -> None:
        """Take them out again."""


@dataclass(frozen=True)
class Block:
    """A decoder block.

    Attributes:
        name: in the model.
        module: the block itself.
        linears: its linear layers in order.
        source: of weights that come into memory only while they are needed; None: are there.
    """

    name: str
    module: nn.Module
    linears: tuple[Linear, ...]
    source: Source | None = None

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """Have the weights in memory; changes are lost if they come from elsewhere."""
        if self.source is None or not next(self.module.parameters()).is_meta:
            yield
            return
        self.source.load(self)
        try:
            yield
        finally:
            self.source.drop(self)


def device_of(model: nn.Module) -> torch.device:
    """Where a model computes, whose blocks may not be in memory."""
    return next(p.device for p in model.parameters() if not p.is_meta)


def is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies its input by a matrix, as ``nn.Linear`` or ``Conv1D`` do."""
    if isinstance(module, nn.Linear):
        return True
    weight = getattr(module, "weight", None)
    conv1d = type(module).__name__ == "Conv1D" and isinstance(weight, Tensor)
    return conv1d and weight is not None and weight.ndim == 2


def find_blocks(model: nn.Module, source: Source | None = None) -> list[Block]:
    """The decoder blocks of a model, in order.

    Args:
        model: a causal language model.
        source: of the blocks' weights, if they are not in memory.

    Raises:
        UserError: there are none; it says what was looked for.
    """
    lists = [(name, module) for name, module in _outermost_lists(model) if _linear_weights(module)]
    if not lists:
        raise UserError(
            f"model={type(model).__name__}: no decoder blocks were found; looked for a ModuleList "
            "of modules of one class that hold nn.Linear or Conv1D layers"
        )
    prefix, found = max(lists, key=lambda item: _linear_weights(item[1]))
    blocks = []
    for number, module in enumerate(found):
        name = f"{prefix}.{number}"
        linears = tuple(
            Linear(f"{name}.{inner}.weight", layer, number)
            for inner, layer in module.named_modules()
            if is_linear(layer)
        )
        blocks.append(Block(name, module, linears, source))
    return blocks


def others(blocks: list[Block]) -> list[str]:
    """Matrices of the blocks that are in no linear layer, such as experts fused into one."""
    names = []
    for block in blocks:
        known = {linear.name for linear in block.linears}
        for inner, parameter in block.module.named_parameters():
            name = f"{block.name}.{inner}"
            if parameter.ndim > 1 and name not in known:
                names.append(name)
    return names


def _outermost_lists(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.ModuleList]]:
    """Lists of modules of one class that are in no other such list."""
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if isinstance(child, nn.ModuleList) and len({type(item) for item in child}) == 1:
            yield path, child
        else:
            yield from _outermost_lists(child, f"{path}.")


def _linear_weights(module: nn.Module) -> int:
    layers = [layer for layer in module.modules() if is_linear(layer)]
    return sum(parameter.numel() for layer in layers for parameter in layer.parameters(False))
