"""What a linear layer gets beside its weight for the time of recovery.

An extra is a module inside the layer, so that optimizer and checkpoint know its parameters; the
layer's forward pass is the extra's while it is attached.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from sparsebench.data.seeding import generator
from sparsebench.llm.recovery.spec import RecoverySpec

_NAME = "recovery"


class Extra(nn.Module):
    """Changes what a linear layer computes; parameters of its own.

    Attributes:
        stays: whether it is part of the model at the end, and not folded into the weight.
    """

    stays = False

    def forward(self, x: Tensor, layer: nn.Linear) -> Tensor:
        """Outputs (..., R) of the layer for inputs (..., C)."""
        raise NotImplementedError  # each kind has its own

    def fold(self, layer: nn.Linear, kept: Tensor) -> None:
        """Put what was learned into the weight, inside its mask (R, C)."""


class Lora(Extra):
    """W x + (alpha / r) B A x with W frozen (LoRA, arXiv 2106.09685; on pruned models 2306.11695).

    A (r x C) is Kaiming uniform with a = sqrt 5, B (R x r) is zero, so that nothing changes at
    first. With ``merge=training`` it is (W + M o (alpha / r) B A) x.
    """

    kept: Tensor | None

    def __init__(
        self, layer: nn.Linear, spec: RecoverySpec, kept: Tensor, seed: int, name: str
    ) -> None:
        """Draw A by the run's seed and the name of the weight."""
        super().__init__()
        assert spec.rank is not None
        outputs, inputs = layer.weight.shape
        a = layer.weight.new_empty(spec.rank, inputs).cpu()
        nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator("lora", seed, name))
        self.a = nn.Parameter(a.to(layer.weight.device))
        self.b = nn.Parameter(layer.weight.new_zeros(outputs, spec.rank))
        self.factor, self.share = spec.alpha / spec.rank, spec.dropout
        self.merge, self.stays = spec.merge, spec.merge == "none"
        mask = kept.to(layer.weight.dtype) if spec.merge == "training" else None
        self.register_buffer("kept", mask, persistent=False)

    def delta(self) -> Tensor:
        """(alpha / r) B A, in the weight's shape."""
        return self.factor * (self.b @ self.a)

    def forward(self, x: Tensor, layer: nn.Linear) -> Tensor:
        """Outputs with the low-rank term."""
        if self.kept is not None:
            return linear(x, layer.weight + self.kept * self.delta(), layer.bias)
        seen = dropout(x, self.share, self.training)
        low = linear(linear(seen, self.a), self.b)
        return linear(x, layer.weight, layer.bias) + self.factor * low

    def fold(self, layer: nn.Linear, kept: Tensor) -> None:
        """(W + B A) inside the mask; outside it is lost."""
        if self.merge != "none":
            layer.weight.data += kept * self.delta()


class Slorb(Extra):
    """W x + B P x, P summing groups of k inputs (SLoRB, AST, arXiv 2407.20584).

    B (R x C/k) begins as the mean of the pruned weights of each group, kept positions counting as
    zeros. ``k`` must divide the inputs.
    """

    stays = True

    def __init__(self, layer: nn.Linear, spec: RecoverySpec, pruned: Tensor) -> None:
        """Begin with the means of the pruned weights (R, C), zeros where they are kept."""
        super().__init__()
        assert spec.slorb is not None
        outputs, inputs = layer.weight.shape
        self.p = nn.Parameter(
            projection(inputs, spec.slorb).to(layer.weight), requires_grad=spec.slorb_projection
        )
        self.b = nn.Parameter(pruned.view(outputs, -1, spec.slorb).mean(2).to(layer.weight))

    def forward(self, x: Tensor, layer: nn.Linear) -> Tensor:
        """Outputs with the term of the groups."""
        return linear(x, layer.weight, layer.bias) + linear(linear(x, self.p), self.b)


class Scales(Extra):
    """(W o s) x: a learned factor for each output and group of inputs (CAST, arXiv 2509.25996)."""

    def __init__(self, layer: nn.Linear, spec: RecoverySpec) -> None:
        """Begin with 1."""
        super().__init__()
        assert spec.scale is not None
        outputs, inputs = layer.weight.shape
        self.group = min(spec.scale, inputs)
        self.factors = nn.Parameter(layer.weight.new_ones(outputs, -(-inputs // self.group)))

    def whole(self, inputs: int) -> Tensor:
        """A factor for each weight."""
        return self.factors.repeat_interleave(self.group, 1)[:, :inputs]

    def forward(self, x: Tensor, layer: nn.Linear) -> Tensor:
        """Outputs of the scaled weight."""
        return linear(x, layer.weight * self.whole(layer.in_features), layer.bias)

    def fold(self, layer: nn.Linear, kept: Tensor) -> None:
        """Scale the weight; zeros stay zeros."""
        layer.weight.data *= self.whole(layer.in_features)


def projection(inputs: int, k: int) -> Tensor:
    """P (C/k, C): ones over the k consecutive inputs of each group."""
    return torch.eye(inputs // k).repeat_interleave(k, 1)


def attach(layer: nn.Linear, extra: Extra) -> None:
    """Let an extra compute what the layer gives."""
    layer.add_module(_NAME, extra)
    extra.train(layer.training)
    vars(layer)["forward"] = lambda x: extra(x, layer)


def detach(layer: nn.Linear, kept: Tensor) -> Extra | None:
    """Fold a layer's extra into its weight and take it off.

    Args:
        layer: with or without an extra.
        kept: mask of its weight (R, C).

    Returns:
        The extra, if it was not folded.
    """
    extra: Any = layer._modules.pop(_NAME, None)
    if extra is None:
        return None
    del vars(layer)["forward"]
    with torch.no_grad():
        extra.fold(layer, kept)
    return extra if extra.stays else None


def tensors_of(extras: Mapping[str, Extra]) -> dict[str, Tensor]:
    """Parameters of extras that stay, by the names of PEFT's adapters for LoRA."""
    words = {"a": "lora_A.weight", "b": "lora_B.weight"}
    found = {}
    for layer, extra in extras.items():
        for name, parameter in extra.named_parameters():
            lora = isinstance(extra, Lora)
            key = f"base_model.model.{layer}.{words[name]}" if lora else f"{layer}.{name}"
            found[key] = parameter.detach().cpu().contiguous()
    return found
