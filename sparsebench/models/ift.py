"""Sparse iso-FLOP transformations: a network with more weights, of which fewer are used.

At the sparsity s a layer may have r = 1 / (1 - s) times its weights at no more FLOPs. A layer of i
inputs, o outputs and t taps (1 if it is linear) becomes (Sparse-IFT, arXiv 2303.11525, section 2):

* ``wide``: all hidden widths are multiplied by sqrt(r) and rounded down.
* ``parallel``: r branches, each with a norm of its own, are summed.
* ``factorized``: t taps to ceil(t i o / ((1 - s) (t i + o))) units, then one tap to o; both sparse.
* ``doped``: the sparse layer plus a dense one of rank floor(s t i o / (t i + o)).

The last three replace the layers that the selector makes sparse (``selector=hidden`` leaves the
first and the last as they were, as the paper does); ``wide`` widens those too, and what they cost
more is counted. FLOPs are relative to the network before. They are equal, but for rounding, where
each layer has the same sparsity (``distribution=strict_uniform``): within a unit below in ``wide``
and ``doped``, exact in ``parallel``, within a unit above in ``factorized``.

From github.com/CerebrasResearch/Sparse-IFT we differ on purpose: r is not rounded (a ``parallel``
whose r is not whole is refused, since it would not be equal); the norms of branches begin at
1 / sqrt(r), so that their sum has the scale of one, and are layer norms where the layer is linear;
in ``wide`` each width is rounded by itself (the code rounds that of the first stage and doubles
it); ``factorized`` has nothing between its factors (the code's ``uv_layer=linear``); and weight
decay acts on factors, not on their product.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsebench.errors import UserError, bad_value
from sparsebench.models.common import rounded_down
from sparsebench.sparsity.selector import select
from sparsebench.sparsity.spec import SelectorSpec

KINDS = ("wide", "parallel", "factorized", "doped")


def of(model: Mapping[str, Any], method: Mapping[str, Any]) -> str | None:
    """The transformation that a config asks for, none if it asks for none.

    Raises:
        UserError: it asks for one where it makes no sense.
    """
    kind: str | None = model.get("ift")
    if not kind:
        return None
    if not method.get("sparse", True) or method.get("shrink"):
        raise UserError(
            f"model.ift={kind}: method={method.get('name')} trains no sparse network, and a larger "
            "dense one would have more FLOPs"
        )
    for dial in ("pretrained", "checkpoint"):
        if model.get(dial):
            raise UserError(
                f"model.{dial}={model[dial]}: model.ift={kind} replaces the layers whose weights "
                "these are"
            )
    return kind


def transformed(
    kind: str,
    make: Callable[[float | None], nn.Module],
    sparsity: float,
    selector: SelectorSpec,
    width: float = 1.0,
) -> nn.Module:
    """Build a network and transform it.

    Args:
        kind: one of ``KINDS``.
        make: builds the network, at a width or at that of its config (None).
        sparsity: that it will be trained with, above 0 and below 1.
        selector: which weights will be sparse.
        width: that of its config.

    Raises:
        UserError: a value or a layer that does not fit.
    """
    if kind not in KINDS:
        raise bad_value("model.ift", kind, f"one of {', '.join(KINDS)}", KINDS)
    if not 0 < sparsity < 1:
        raise UserError(f"sparsity={sparsity:g}: model.ift={kind} needs one above 0 and below 1")
    if kind == "wide":
        with rounded_down():
            return make(width * math.sqrt(1.0 / (1.0 - sparsity)))
    model = make(None)
    for name in select(model, selector):
        path = name.rpartition(".")[0]
        if not path:
            raise UserError(f"model.ift={kind}: the network is one layer, with none inside it")
        model.set_submodule(path, _replaced(kind, path, model.get_submodule(path), sparsity))
    return model


def _replaced(kind: str, path: str, layer: nn.Module, sparsity: float) -> nn.Module:
    if not isinstance(layer, nn.Linear | nn.Conv2d) or getattr(layer, "groups", 1) > 1:
        raise UserError(
            f"model.ift={kind}: '{path}' is neither a linear layer nor a convolution of two "
            "dimensions without groups; leave it out by selector.exclude"
        )
    if kind == "parallel":
        return Parallel(layer, branches(sparsity))
    taps, inputs, outputs = _sizes(layer)
    if kind == "factorized":
        return Factorized(layer, factor_units(taps, inputs, outputs, sparsity))
    rank = doped_rank(taps, inputs, outputs, sparsity)
    return Doped(layer, rank) if rank else layer


def branches(sparsity: float) -> int:
    """Number of branches, 1 / (1 - s).

    Raises:
        UserError: it is not whole.
    """
    exact = 1.0 / (1.0 - sparsity)
    if abs(exact - round(exact)) > 1e-6:
        near = 1.0 - 1.0 / round(exact)
        raise UserError(
            f"sparsity={sparsity:g}: model.ift=parallel needs 1 / (1 - sparsity) to be whole, such "
            f"as at 0.5, 0.75, 0.8 and 0.9; the nearest is {near:.4g}"
        )
    return round(exact)


def factor_units(taps: int, inputs: int, outputs: int, sparsity: float) -> int:
    """Units between the two sparse factors of a layer.

    As in the official code a whole number may become one more by the rounding of floats: 64
    channels at 0.9 give 577 where 576 would be exact.
    """
    exact = taps * inputs * outputs / ((1.0 - sparsity) * (taps * inputs + outputs))
    return math.ceil(exact)


def doped_rank(taps: int, inputs: int, outputs: int, sparsity: float) -> int:
    """Rank of the dense part beside a sparse layer; 0 if a small layer leaves no room for one."""
    return math.floor(sparsity * (taps * inputs * outputs) / (taps * inputs + outputs))


def _sizes(layer: nn.Linear | nn.Conv2d) -> tuple[int, int, int]:
    outputs, inputs = layer.weight.shape[:2]
    return layer.weight[0, 0].numel(), inputs, outputs


class Parallel(nn.Module):
    """Sum of copies of a layer, each with its own weights and norm."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, number: int) -> None:
        """Take the layer as the first branch; the others have its values at other places."""
        super().__init__()
        layer.bias = None  # the norm takes it away, and has one of its own
        layers = [layer, *(_redrawn(layer) for _ in range(number - 1))]
        self.branches = nn.ModuleList(layers)
        self.norms = nn.ModuleList(_norm(branch, number**-0.5) for branch in layers)

    def forward(self, x: Tensor) -> Tensor:
        """What the layer would give, in shape."""
        out = torch.zeros((), device=x.device)
        for branch, norm in zip(self.branches, self.norms, strict=True):
            out = out + norm(branch(x))
        return out


def _redrawn(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    twin, weight = copy.deepcopy(layer), layer.weight.detach()
    order = torch.randperm(weight.numel(), device=weight.device)
    twin.weight = nn.Parameter(weight.reshape(-1)[order].view(weight.shape))
    return twin


def _norm(layer: nn.Linear | nn.Conv2d, scale: float) -> nn.Module:
    outputs = layer.weight.shape[0]
    linear = isinstance(layer, nn.Linear)
    norm: nn.LayerNorm | nn.BatchNorm2d = (
        nn.LayerNorm(outputs) if linear else nn.BatchNorm2d(outputs)
    )
    nn.init.constant_(norm.weight, scale)
    return norm.to(layer.weight.device)


class Factorized(nn.Sequential):
    """Two layers for one: to ``units`` with all taps, and on with one tap; He, fan-out."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, units: int) -> None:
        """Take the sizes and the bias of a layer."""
        outputs, inputs = layer.weight.shape[:2]
        bias = layer.bias is not None
        first: nn.Module
        if isinstance(layer, nn.Linear):
            first = nn.Linear(inputs, units, bias=False)
            second: nn.Module = nn.Linear(units, outputs, bias=bias)
        else:
            first = _like(layer, units)
            second = nn.Conv2d(units, outputs, 1, bias=bias)
        for factor in (first, second):
            nn.init.kaiming_normal_(
                factor.get_parameter("weight"), mode="fan_out", nonlinearity="relu"
            )
        super().__init__(first, second)
        self.to(layer.weight.device)


def _like(layer: nn.Conv2d, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(
        layer.in_channels, outputs, layer.kernel_size, layer.stride,  # type: ignore[arg-type]  # pairs, whatever their type says
        layer.padding, layer.dilation, bias=False, padding_mode=layer.padding_mode,  # type: ignore[arg-type]  # as above
    )  # fmt: skip


class Doped(nn.Module):
    """A layer plus a dense one of low rank, whose factors no selector takes for layers."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int) -> None:
        """Add factors to a layer; He, fan-out."""
        super().__init__()
        self.layer = layer
        outputs, inputs, *taps = layer.weight.shape
        device = layer.weight.device
        self.down = nn.Parameter(torch.empty(rank, inputs, *taps, device=device))
        self.up = nn.Parameter(torch.empty(outputs, rank, *(1 for _ in taps), device=device))
        for factor in (self.down, self.up):
            nn.init.kaiming_normal_(factor, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """What the layer would give, in shape."""
        layer = self.layer
        out: Tensor = layer(x)
        if isinstance(layer, nn.Linear):
            return out + F.linear(F.linear(x, self.down), self.up)
        return out + F.conv2d(layer._conv_forward(x, self.down, None), self.up)
