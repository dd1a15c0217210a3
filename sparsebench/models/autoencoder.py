"""An autoencoder of one hidden layer."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from sparsebench.errors import bad_value
from sparsebench.models.common import check_dropout, scaled

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU, "linear": nn.Identity}


def autoencoder(
    input_shape: tuple[int, ...],
    *,
    width: float = 1.0,
    hidden: Sequence[int] = (1000,),
    dropout: float = 0.0,
    activation: str = "sigmoid",
    output: str = "linear",
) -> nn.Sequential:
    """Encoder and decoder, a linear layer each, with as many outputs as inputs.

    The network of QuickSelection (Atashgahi 2021, arXiv 2012.00560, section 3).

    Args:
        input_shape: shape of one example; flattened inside.
        width: multiplies the hidden units.
        hidden: units of the one hidden layer.
        dropout: rate after it.
        activation: of the hidden layer: ``sigmoid``, ``tanh``, ``relu`` or ``linear``.
        output: of the output, likewise.

    Returns:
        The network, with layers named ``encoder`` and ``decoder``.

    Raises:
        UserError: a dial out of range.
    """
    if len(hidden) != 1 or hidden[0] < 1:
        raise bad_value("model.hidden", list(hidden), "one layer, such as [1000], is needed")
    check_dropout(dropout)
    for key, value in (("activation", activation), ("output", output)):
        if value not in ACTIVATIONS:
            allowed = f"one of {', '.join(ACTIVATIONS)}"
            raise bad_value(f"model.args.{key}", value, allowed, ACTIVATIONS)
    features, units = math.prod(input_shape), scaled(hidden[0], width)
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    layers["encoder"] = nn.Linear(features, units)
    layers["hidden"] = ACTIVATIONS[activation]()
    if dropout:
        layers["dropout"] = nn.Dropout(dropout)
    layers["decoder"] = nn.Linear(units, features)
    if output != "linear":
        layers["output"] = ACTIVATIONS[output]()
    return nn.Sequential(layers)
