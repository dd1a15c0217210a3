"""DeepR, deep rewiring (Bellec et al. 2018, arXiv 1711.05136): training as random rewiring.

Each place k has a sign s_k for ever and a parameter theta_k: its weight is s_k theta_k where
theta_k is not negative, else the place is dormant. A step moves what is active (algorithm 1)::

    theta_k <- theta_k - lr dE/dtheta_k - lr alpha + sqrt(2 lr T) nu_k,    nu_k ~ N(0, 1)

Those that became negative go to sleep, and as many dormant ones, drawn at random from all that are
dormant then (also those just asleep), wake at theta_k = 0. So the number of connections is exact
after each update. It is that of each layer (``grow_scope: layer``) or of the network (``global``:
drawn from the dormant places of all layers).

Where paper and code (guillaumeBellec/deep_rewiring) disagree:

* noise: the paper's temperature T scales with sqrt(lr); the code adds lr N(0, sigma^2). We take the
  code's sigma (``noise``), as noise on the gradient. Both are one at T = lr sigma^2 / 2.
* a new connection starts from 0 in the paper, from 1e-12 in the code; here from 0.
* over the whole network the paper draws from all dormant places alike; the code first draws the
  layer, in proportion to its initial connections. We follow the paper.

On purpose: the sign of a place is that of its initial weight, which for any symmetric
initialisation is the same as drawing it. Momentum and Adam work on theta as on any weight. With
``every`` above one step, a weight may be of the wrong sign until the next update.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsebench.errors import bad_value
from sparsebench.sparsity.composed import Composed
from sparsebench.sparsity.masks import pack, unpack
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.observers import Observer
from sparsebench.sparsity.scores import Layer
from sparsebench.sparsity.spec import MethodSpec, number
from sparsebench.sparsity.topk import positions


class Sign(Observer):
    """The sign that each place is given at initialisation."""

    def __init__(self, spec: MethodSpec) -> None:
        """Nothing seen yet."""
        self.kept: dict[str, Tensor] = {}

    def begin(self, state: TrainState) -> None:
        """Take the signs of the first weights; 0 counts as positive."""
        self.kept = {n: _signs(p.detach() >= 0, p) for n, p in state.masks.parameters.items()}

    def values(self, state: TrainState) -> Mapping[str, Tensor]:
        """1 or -1, of the weight's shape."""
        return self.kept

    def state_dict(self) -> dict[str, Any]:
        """As bits."""
        return {name: pack(sign > 0) for name, sign in self.kept.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the bits back."""
        for name, bits in state.items():
            like = self.kept[name]
            self.kept[name] = _signs(unpack(bits, like.shape).to(like.device), like)


def _signs(positive: Tensor, like: Tensor) -> Tensor:
    return positive.to(like.dtype) * 2.0 - 1.0


class DeepR(Composed):
    """Drops what crossed zero; the drop score must be negative there (``aligned``)."""

    @dataclass(frozen=True)
    class Options:
        """The penalty and the noise of a step."""

        l1: float = number(1e-5, "[0, inf)", "alpha: pull of active weights towards zero")
        noise: float = number(1e-5, "[0, inf)", "standard deviation of noise on the gradient")

    def _check_parts(self, spec: MethodSpec) -> None:
        super()._check_parts(spec)
        if "sign" not in self.observers:
            allowed = "this engine needs a score that knows the signs of places, such as aligned"
            raise bad_value("method.drop", spec.drop, allowed)

    @torch.no_grad()
    def after_backward(self, state: TrainState) -> bool:
        """Add the penalty's gradient and the noise, to what is active (the rest gets masked)."""
        replaced = super().after_backward(state)
        if self.sparsity > 0.0 and self._in_window(state.step):
            signs = self.observers["sign"].values(state)
            for name, parameter in state.masks.parameters.items():
                if parameter.grad is not None:
                    parameter.grad.add_(signs[name], alpha=self.options.l1)
                    self._disturb(state, parameter.grad)
        return replaced

    def _disturb(self, state: TrainState, gradient: Tensor) -> None:
        if self.options.noise:
            noise = torch.randn(gradient.shape, generator=state.generator)
            gradient.add_(noise.to(gradient.device), alpha=self.options.noise)

    def _dropped(
        self, layers: Mapping[str, Layer], present: Mapping[str, Tensor], fraction: float
    ) -> dict[str, Tensor]:
        assert self._drop
        return {n: positions((self._drop(v) < 0.0) & present[n]) for n, v in layers.items()}
