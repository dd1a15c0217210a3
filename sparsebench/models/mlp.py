"""Fully connected networks."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from sparsebench.errors import bad_value
from sparsebench.models.common import check_dropout, init_glorot, scaled


def mlp(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    width: float = 1.0,
    hidden: Sequence[int] = (300, 100),
    dropout: float = 0.0,
) -> nn.Sequential:
    """Linear layers with ReLU between them; initialisation of ``torch.nn.Linear``.

    Args:
        input_shape: shape of one example; flattened inside.
        num_classes: outputs.
        width: multiplies the hidden units.
        hidden: units of each hidden layer; none for logistic regression.
        dropout: rate after each hidden layer.

    Returns:
        The network, with layers named ``fc1``, ``fc2``, ...

    Raises:
        UserError: ``hidden`` or ``dropout`` out of range.
    """
    hidden = list(hidden)
    if any(not isinstance(units, int) or units < 1 for units in hidden):
        raise bad_value("model.hidden", str(hidden), "a list of whole numbers above 0")
    check_dropout(dropout)
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    fan_in = math.prod(input_shape)
    for number, units in enumerate(hidden, start=1):
        layers[f"fc{number}"] = nn.Linear(fan_in, scaled(units, width))
        layers[f"relu{number}"] = nn.ReLU()
        if dropout:
            layers[f"dropout{number}"] = nn.Dropout(dropout)
        fan_in = scaled(units, width)
    layers[f"fc{len(hidden) + 1}"] = nn.Linear(fan_in, num_classes)
    return nn.Sequential(layers)


def lenet_300_100(
    input_shape: tuple[int, ...], num_classes: int, *, width: float = 1.0
) -> nn.Sequential:
    """LeNet-300-100 of LeCun et al. 1998 as pruning papers use it (arXiv:1506.02626).

    On 28x28 images with 10 classes: 266,200 weights, 266,610 parameters with the biases.
    Glorot normal initialisation (lottery tickets, arXiv:1803.03635, fig. 2).

    Args:
        input_shape: shape of one example; flattened inside.
        num_classes: outputs.
        width: multiplies the hidden units.

    Returns:
        The network.
    """
    model = mlp(input_shape, num_classes, width=width, hidden=(300, 100))
    init_glorot(model)
    return model
