"""BDWP: N:M weights in the forward pass and, other ones, in the backward pass (arXiv 2309.13015).

Of the three matrix products of a training step two read the weights, each along another dimension:
the forward pass sums over a layer's inputs, the gradient of its activations over its outputs. Each
gets the N:M weights of its own dimension:

    y = x W_FF^T,  dx = dy W_BP,  dW = dy^T x

where W_FF keeps the N largest of every M weights along the inputs and W_BP along the outputs, both
of the same dense weights, which all learn from dW (shadow storage), as in SR-STE. So dx is not the
gradient of what was computed, and a check by finite differences fails unless N = M.

FLOPs: N/M forward, N/M for dx and all of dW: (1/4 + 1/4 + 1) / 3 = 0.5 of dense training at 2:8.

* A layer whose outputs do not divide by M, such as a classifier of 10 classes, has its dense
  weights in dx; one whose inputs do not divide is dense forward as well (``structure.misfit``).
* W_BP is chosen anew at each step, W_FF every ``method.every`` steps.
* The pull on absent weights is SR-STE's; what the paper has there could not be checked.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsebench.errors import UserError
from sparsebench.sparsity.composed import Composed
from sparsebench.sparsity.method import Densities, TrainState
from sparsebench.sparsity.nm import NM, mask
from sparsebench.sparsity.spec import MethodSpec, StructureSpec
from sparsebench.sparsity.window import Window

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Layout = tuple[Any, Any, Any, int] | None  # stride, padding, dilation, groups; None: linear


class TwoWay(torch.autograd.Function):
    """A linear layer or convolution whose activations get their gradient by other weights."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor, layout: Layout
    ) -> Tensor:
        """The layer's output.

        Args:
            ctx: autograd's.
            x: input, (batch, ..., inputs) or (batch, channels, ...).
            weight: of the forward pass.
            bias: or none.
            other: weight by which the gradient of ``x`` is taken, of the same shape.
            layout: of a convolution.
        """
        ctx.save_for_backward(x, other)
        ctx.layout, ctx.bias = layout, bias is not None
        if layout is None:
            return F.linear(x, weight, bias)
        stride, padding, dilation, groups = layout
        flat = [0] * len(stride)
        y: Tensor = torch.convolution(
            x, weight, bias, stride, padding, dilation, False, flat, groups
        )
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x (by the other weight), weight and bias."""
        x, other = ctx.saved_tensors
        inputs, weights = x.to(dy.dtype), other.to(dy.dtype)  # mixed precision
        wanted = [ctx.needs_input_grad[0], True, ctx.bias]
        if ctx.layout is None:
            found = _linear_backward(dy, inputs, weights, wanted)
        else:
            stride, padding, dilation, groups = ctx.layout
            found = torch.ops.aten.convolution_backward(
                dy, inputs, weights, [len(other)], stride, padding, dilation, False,
                [0] * len(stride), groups, wanted,
            )  # fmt: skip
        dx, dw, db = found
        return dx if dx is None else dx.to(x.dtype), dw.to(other.dtype), db, None, None


def _linear_backward(
    dy: Tensor, x: Tensor, other: Tensor, wanted: list[bool]
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    rows = dy.reshape(-1, dy.shape[-1])
    dx = dy @ other if wanted[0] else None
    return dx, rows.t() @ x.reshape(-1, x.shape[-1]), rows.sum(0) if wanted[2] else None


class Bdwp(Composed):
    """N:M along the inputs forward, along the outputs backward."""

    structure: NM

    def _find_parts(self, spec: MethodSpec, structure: StructureSpec) -> None:
        super()._find_parts(spec, structure)
        if not isinstance(self.structure, NM):
            raise UserError(
                f"structure={structure.name}: method.engine={spec.engine} needs an N:M structure, "
                "such as structure=nm_2_8"
            )

    def start(self, state: TrainState) -> None:
        """Let the sparse layers take their backward pass by other weights."""
        super().start(state)
        self._state = state
        self._backward: dict[str, Tensor] = {}
        self._step = -1
        if self.sparsity == 0.0:
            return
        names = {id(p): name for name, p in state.masks.parameters.items()}
        for module in state.model.modules():
            name = names.get(id(getattr(module, "weight", None)))
            if name and isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
                layout = _layout(name, module)
                module.forward = functools.partial(  # type: ignore[method-assign]  # on purpose
                    self._forward, module, name, layout
                )

    def _forward(self, module: Any, name: str, layout: Layout, x: Tensor) -> Tensor:
        """What a layer does in place of its own forward pass."""
        if not torch.is_grad_enabled():
            plain: Tensor = type(module).forward(module, x)
            return plain
        if self._step != self._state.step:  # the weights have moved
            self._step = self._state.step
            self._backward = {name: self._other(name) for name in self._state.masks}
        y: Tensor = TwoWay.apply(x, module.weight, module.bias, self._backward[name], layout)
        return y

    @torch.no_grad()
    def _other(self, name: str) -> Tensor:
        """The weights of the backward pass, N:M along the outputs."""
        dense = self._state.masks.dense(name)
        return dense * mask(dense, self.structure.n, self.structure.m, dim=0)

    def gradient_densities(self, state: TrainState) -> Densities:
        """The gradient of the activations costs what W_BP has."""
        shapes = {name: p.shape for name, p in state.masks.parameters.items()}
        return self._densities(shapes) if self.sparsity > 0.0 else {}

    def forecast_gradients(
        self, shapes: Mapping[str, torch.Size], window: Window, step: int
    ) -> Densities:
        """The same before training."""
        return self._densities(shapes)

    def _densities(self, shapes: Mapping[str, torch.Size]) -> Densities:
        n, m = self.structure.n, self.structure.m
        return {"input_gradient": {k: 1.0 if s[0] % m else n / m for k, s in shapes.items()}}


def _layout(name: str, module: nn.Module) -> Layout:
    """How a convolution slides, in numbers."""
    if not isinstance(module, _CONVOLUTIONS):
        return None
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        raise UserError(
            f"method=bdwp: the padding of '{name}' ({module.padding_mode}, {module.padding}) is "
            "not in numbers of zeros; leave it out by selector.exclude"
        )
    return module.stride, module.padding, module.dilation, module.groups
