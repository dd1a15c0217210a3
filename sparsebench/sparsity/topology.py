"""What masks look like and how they move: exploration, distances, degrees, dead units.

Masks are boolean tensors by parameter name. A unit is an output (row) or input channel of a layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sparsebench.sparsity.masks import pack, unpack

Masks = Mapping[str, Tensor]

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class ItopTracker:
    """The union of all connections that were ever active, R_s of ITOP (arXiv:2102.02887)."""

    def __init__(self, masks: Masks | None = None) -> None:
        """Start with the initial masks, which count."""
        self._ever: dict[str, Tensor] = {}
        self._shapes: dict[str, torch.Size] = {}
        if masks is not None:
            self.update(masks)

    @torch.no_grad()
    def update(self, masks: Masks) -> None:
        """Add the connections of these masks; kept as bits, an eighth of a byte a weight."""
        for name, mask in masks.items():
            bits = pack(mask.bool())
            before = self._ever.get(name)
            self._ever[name] = bits if before is None else before.to(bits.device) | bits
            self._shapes[name] = mask.shape

    def layers(self) -> dict[str, float]:
        """Share of each layer's weights that were ever active."""
        return {n: self._count(n) / shape.numel() for n, shape in self._shapes.items()}

    @property
    def rate(self) -> float:
        """Share of all weights that were ever active; 0 before the first masks."""
        weights = sum(shape.numel() for shape in self._shapes.values())
        return sum(map(self._count, self._shapes)) / weights if weights else 0.0

    def _count(self, name: str) -> int:
        return int(unpack(self._ever[name], self._shapes[name]).sum())

    def state_dict(self) -> dict[str, dict[str, Tensor | list[int]]]:
        """Packed bits and shape of each layer."""
        return {
            name: {"bits": bits.cpu(), "shape": list(self._shapes[name])}
            for name, bits in self._ever.items()
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor | list[int]]]) -> None:
        """Go on from the union of a checkpoint."""
        self._ever, self._shapes = {}, {}
        for name, layer in state.items():
            bits, shape = layer["bits"], layer["shape"]
            assert isinstance(bits, Tensor)
            self._ever[name], self._shapes[name] = bits, torch.Size(shape)


def survived(initial: Masks, now: Masks) -> float:
    """Share of the initial connections that are active now; 1 if there were none."""
    kept = sum(int((mask.bool() & now[name].bool()).sum()) for name, mask in initial.items())
    total = _count(initial)
    return kept / total if total else 1.0


def distance(first: Masks, second: Masks, kind: Literal["hamming", "jaccard"] = "hamming") -> float:
    """How far apart two sets of masks are, over all layers; depends on the order of neurons.

    Args:
        first: masks by name.
        second: masks of the same names and shapes.
        kind: ``hamming`` is ``|a xor b| / (|a| + |b|)``, at equal counts the share of connections
            that moved; ``jaccard`` is ``1 - |a and b| / |a or b|``.

    Returns:
        0 for equal masks (also empty ones), 1 for disjoint ones.
    """
    both = sum(int((mask.bool() & second[name].bool()).sum()) for name, mask in first.items())
    total = _count(first) + _count({name: second[name] for name in first})
    if total == 0:
        return 0.0
    return {"hamming": 1 - 2 * both / total, "jaccard": 1 - both / (total - both)}[kind]


def nnstd(first: Masks, second: Masks) -> tuple[float, dict[str, float]]:
    """Distance of two sparse networks up to the order of neurons (NNSTD, arXiv:2006.14085).

    Layer by layer, the neurons of the second net are matched to those of the first (Hungarian
    method) by the normalised edit distance of their inputs, ``|A xor B| / |A or B|``, and its next
    layer is reordered to the match. The inputs of the network keep their order. Neurons with equal
    inputs are matched by index, so a permuted copy is at distance 0 only where they differ.

    Args:
        first: masks (out, in) of a chain of linear layers, in order.
        second: masks of the same shapes.

    Returns:
        Mean over layers, and the mean cost of the match of each layer.
    """
    from scipy.optimize import linear_sum_assignment

    layers: dict[str, float] = {}
    order: Tensor | None = None
    for (name, mask), other in zip(first.items(), second.values(), strict=True):
        if mask.shape != other.shape or mask.ndim != 2:
            raise ValueError(f"'{name}': needs two 2-D masks of one shape, got {tuple(mask.shape)}")
        if order is not None:
            if len(order) != mask.shape[1]:
                raise ValueError(f"'{name}': {mask.shape[1]} inputs follow {len(order)} outputs")
            other = other[:, order]
        costs = _edit_distances(mask.cpu(), other.cpu())
        rows, columns = linear_sum_assignment(costs.numpy())
        layers[name] = float(costs[rows, columns].mean())
        order = torch.from_numpy(columns)
    return sum(layers.values()) / len(layers), layers


def _edit_distances(first: Tensor, second: Tensor) -> Tensor:
    """``|A xor B| / |A or B|`` of every row of one mask with every row of the other."""
    a, b = first.double(), second.double()
    both = a @ b.T
    union = a.sum(1)[:, None] + b.sum(1)[None, :] - both
    return torch.where(union > 0, 1 - both / union.clamp(min=1), 0.0)


@dataclass(frozen=True)
class DeadUnits:
    """Units of a layer that its mask cuts off.

    Attributes:
        outputs: output units without an active incoming weight.
        inputs: input units without an active outgoing weight.
        n_outputs: number of output units.
        n_inputs: number of input units.
    """

    outputs: int
    inputs: int
    n_outputs: int
    n_inputs: int


def dead_units(model: nn.Module, masks: Masks) -> dict[str, DeadUnits]:
    """Units that the masks of each layer cut off, whatever the data."""
    found = {}
    for name, mask in masks.items():
        units = _by_unit(model, name, mask)
        outputs, inputs = units.any(3).any(2).view(-1), units.any(3).any(1).view(-1)
        found[name] = DeadUnits(
            int((~outputs).sum()), int((~inputs).sum()), len(outputs), len(inputs)
        )
    return found


#: The functions that a ReLU may go through, as module or as function.
_RELU = {
    nn.functional.relu, nn.functional.relu_, nn.functional.relu6, torch.relu, torch.relu_,
    Tensor.relu, Tensor.relu_,
}  # fmt: skip


class _ReluZeros(TorchFunctionMode):
    """Counts zeros among the outputs of all ReLUs called within it."""

    def __init__(self) -> None:
        super().__init__()
        self.zeros = self.outputs = 0

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        if function in _RELU:
            self.zeros += found.numel() - int(torch.count_nonzero(found))
            self.outputs += found.numel()
        return found


@torch.no_grad()
def dead_neuron_rate(model: nn.Module, inputs: Iterable[Tensor]) -> float | None:
    """Share of pairs of ReLU and sample whose output is 0, the dynamic rate of AP (2212.06145).

    Args:
        model: the network, as it evaluates; left in the mode it was in.
        inputs: batches of inputs, each place of a feature map a neuron of its own.

    Returns:
        Of all ReLUs together; None for a network that calls none.
    """
    training = model.training
    model.eval()
    with _ReluZeros() as counted:
        for batch in inputs:
            model.forward(batch)  # a compiled call would show no functions
    model.train(training)
    return counted.zeros / counted.outputs if counted.outputs else None


@dataclass(frozen=True)
class FanIn:
    """Active incoming weights of the output units of a layer.

    Attributes:
        mean: mean over units.
        std: standard deviation over units.
        low: of the unit with the fewest.
        high: of the unit with the most.
        dense: incoming weights of a unit in the dense layer.
    """

    mean: float
    std: float
    low: int
    high: int
    dense: int


def fan_in(model: nn.Module, masks: Masks) -> dict[str, FanIn]:
    """How the active weights of each layer spread over its output units."""
    found = {}
    for name, mask in masks.items():
        units = _by_unit(model, name, mask)
        degrees = units.sum((2, 3)).view(-1).double()
        found[name] = FanIn(
            float(degrees.mean()), float(degrees.std(correction=0)),
            int(degrees.min()), int(degrees.max()), units.shape[2] * units.shape[3],
        )  # fmt: skip
    return found


def _by_unit(model: nn.Module, name: str, mask: Tensor) -> Tensor:
    """The mask as (groups, outputs of a group, inputs of a group, kernel)."""
    module = model.get_submodule(name.rpartition(".")[0])
    groups = int(getattr(module, "groups", 1))
    units = mask.bool().reshape(groups, mask.shape[0] // groups, mask.shape[1], -1)
    return units.transpose(1, 2) if isinstance(module, _TRANSPOSED) else units


def _count(masks: Masks) -> int:
    return sum(int(mask.bool().sum()) for mask in masks.values())
