"""GPT-2's Conv1D, whose weight lies transposed, as an ``nn.Linear`` for the time of recovery."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from sparsebench.llm.layers import Linear


@dataclass(frozen=True)
class Turned:
    """A layer, and the one that stands in for it: masks and extras are (outputs, inputs) then."""

    parent: nn.Module
    key: str
    original: nn.Module
    linear: nn.Linear

    @classmethod
    def of(cls, model: nn.Module, layer: Linear) -> Turned:
        """Put an ``nn.Linear`` of the same weights in a layer's place."""
        path, _, key = layer.name.removesuffix(".weight").rpartition(".")
        outputs, inputs = layer.weight.shape
        linear = nn.Linear(inputs, outputs, device="meta")
        linear.weight = nn.Parameter(layer.weight.contiguous())
        original: Any = layer.module
        linear.bias = original.bias
        linear.train(original.training)
        parent = model.get_submodule(path)
        setattr(parent, key, linear)
        return cls(parent, key, original, linear)

    def back(self) -> None:
        """Put the layer back, with the weights of now."""
        original: Any = self.original
        original.weight.data = self.linear.weight.data.t().contiguous()
        original.train(self.linear.training)
        setattr(self.parent, self.key, original)
