"""A forecaster that reads a field through sensors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from sparsebench.errors import UserError
from sparsebench.models.mlp import mlp
from sparsebench.sparsity.sensors import Sensors


def forecaster(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    width: float = 1.0,
    hidden: Sequence[int] = (128,),
    dropout: float = 0.0,
) -> nn.Sequential:
    """A factor for each place of a field, the same at all times, and a fully connected network.

    Args:
        input_shape: (times, height, width).
        num_classes: outputs.
        width: multiplies the hidden units.
        hidden: units of each hidden layer; none for a linear forecast.
        dropout: rate after each hidden layer.

    Returns:
        The network, with layers named ``sensors``, ``fc1``, ``fc2``, ...

    Raises:
        UserError: data that are no field, ``hidden`` or ``dropout`` out of range.
    """
    if len(input_shape) != 3:
        raise UserError(
            "model=forecaster: takes fields (times, height, width), the data has the shape "
            f"{tuple(input_shape)}"
        )
    rest = mlp(input_shape, num_classes, width=width, hidden=hidden, dropout=dropout)
    layers: OrderedDict[str, nn.Module] = OrderedDict(sensors=Sensors(*input_shape[1:]))
    layers.update(rest.named_children())
    return nn.Sequential(layers)
