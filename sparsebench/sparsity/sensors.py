"""Input locations that can be switched off: a weight for each, sparse like any other weights.

A forecaster that begins with :class:`Sensors` reads its inputs through one factor for each place
of a field, the same at all times. Where the factor is absent the place has no influence, so any
method, with all its schedules, drops and revives sensors (``selector=sensors``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsebench.errors import UserError
from sparsebench.sparsity.examples import undisturbed
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.observers import Observer
from sparsebench.sparsity.scores import Layer, needs
from sparsebench.sparsity.spec import MethodSpec


class Sensors(nn.Module):
    """Multiplies a field at each place by a learned factor, that begins at 1."""

    def __init__(self, height: int, width: int) -> None:
        """Take the size of the field."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(height, width))

    def forward(self, x: Tensor) -> Tensor:
        """The field seen through the sensors, [batch, times, height, width]."""
        return x * self.weight


class Influence(Observer):
    """Sum over the steps since the last update of |weight x gradient|, each weight by itself."""

    dense_gradient = "always"

    def __init__(self, spec: MethodSpec) -> None:
        """Nothing seen yet."""
        self.kept: dict[str, Tensor] = {}

    def begin(self, state: TrainState) -> None:
        """Forget an earlier run."""
        self.kept = {}

    def see(self, state: TrainState, gradients: Mapping[str, Tensor], due: bool) -> None:
        """Add a step's."""
        for name, gradient in gradients.items():
            size = (state.masks.parameters[name].detach() * gradient).abs_()
            kept = self.kept.get(name)
            self.kept[name] = size if kept is None else kept.add_(size)

    def changed(self, state: TrainState) -> None:
        """It was for one update."""
        self.kept = {}

    def values(self, state: TrainState) -> Mapping[str, Tensor]:
        """The sums; before training those of one batch."""
        if self.kept:
            return self.kept
        weights = state.masks.parameters
        return {n: (weights[n].detach() * g).abs() for n, g in state.data.gradients(state).items()}

    def state_dict(self) -> dict[str, Any]:
        """The sums."""
        return dict(self.kept)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the sums back."""
        self.kept = {name: tensor.clone() for name, tensor in state.items()}


@needs("influence")
def influence(layer: Layer) -> Tensor:
    """Sum over the steps since the last update of |weight x gradient| (DynST, arXiv 2403.02914).

    The first-order change of the loss if a location were switched off, gathered step by step: a
    sum of signed products would cancel where a location helps now and harms then. The paper has no
    public code; it judges a location by its learned score and the gradient of that. An absent
    weight is 0 and so is its influence: growth needs another score, such as ``accumulated``.
    """
    return layer["influence"].clone()


class Signal(Observer):
    """Variance of what each weight multiplies, on training batches."""

    def __init__(self, spec: MethodSpec) -> None:
        """Take the number of batches."""
        self.batches = spec.initial_batches

    def values(self, state: TrainState) -> Mapping[str, Tensor]:
        """For each sparse parameter, in its shape.

        Raises:
            UserError: a layer that is neither linear nor sensors.
        """
        names = {n: state.model.get_submodule(n.rpartition(".")[0]) for n in state.masks.parameters}
        seen: dict[str, list[Tensor]] = {name: [] for name in names}
        hooks = []
        for name, module in names.items():
            if not isinstance(module, nn.Linear | Sensors):
                raise UserError(
                    f"method: the score signal is of linear layers and sensors, and '{name}' "
                    f"belongs to {type(module).__name__}; leave it out by selector.exclude"
                )
            hooks.append(module.register_forward_pre_hook(_keeper(seen[name])))
        try:
            with undisturbed(state.model), torch.no_grad():
                state.model.eval()
                for batch in state.data.take(state, self.batches):
                    state.data.loss(state.model, batch)
        finally:
            for hook in hooks:
                hook.remove()
        return {n: _variance(seen[n], p) for n, p in state.masks.parameters.items()}


def _keeper(seen: list[Tensor]) -> Any:
    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].detach().clone())

    return keep


def _variance(seen: list[Tensor], weight: Tensor) -> Tensor:
    if not seen:
        return torch.zeros_like(weight)
    samples = torch.cat([x.flatten(0, -2 if x.ndim < 4 else -3) for x in seen])
    return samples.var(0, correction=0).expand(weight.shape).clone()


@needs("signal")
def signal(layer: Layer) -> Tensor:
    """Variance of the input that a weight multiplies: sensors are judged by their data alone."""
    return layer["signal"]
