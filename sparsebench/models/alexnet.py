"""The AlexNet variant of the continual-learning literature, for images of 32 pixels."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from sparsebench.models.common import image_shape, scaled


def alexnet_cifar(
    input_shape: tuple[int, ...], num_classes: int, *, width: float = 1.0
) -> nn.Sequential:
    """Three convolutions without padding and three linear layers, with batch norm and dropout.

    64, 128 and 256 filters of 4x4, 3x3 and 2x2, each halved by max-pooling, and two hidden layers
    of 2,048: 6,519,808 weights on 32x32 images with 10 classes, and no biases. As in the code of
    GPM (arXiv 2103.09762; sahagobinda/GPM), which WSN compares on, but with running statistics in
    the batch norms, so that an answer does not depend on the other images of a batch.

    Args:
        input_shape: (channels, height, width), at least 16 pixels a side.
        num_classes: outputs.
        width: multiplies filters and hidden units.

    Returns:
        The network.

    Raises:
        UserError: the data are not images, or too small.
    """
    inputs, *sides = image_shape(input_shape, "alexnet_cifar", smallest=16)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    plan = ((64, 4, 0.2), (128, 3, 0.2), (256, 2, 0.5))
    for number, (filters, kernel, drop) in enumerate(plan, 1):
        outputs = scaled(filters, width)
        layers[f"conv{number}"] = nn.Conv2d(inputs, outputs, kernel, bias=False)
        layers[f"bn{number}"] = nn.BatchNorm2d(outputs)
        layers[f"relu{number}"] = nn.ReLU()
        layers[f"drop{number}"] = nn.Dropout(drop)
        layers[f"pool{number}"] = nn.MaxPool2d(2)
        inputs, sides = outputs, [(side - kernel + 1) // 2 for side in sides]
    layers["flat"] = nn.Flatten()
    inputs *= sides[0] * sides[1]
    for number in (1, 2):
        outputs = scaled(2048, width)
        layers[f"fc{number}"] = nn.Linear(inputs, outputs, bias=False)
        layers[f"bn{number + 3}"] = nn.BatchNorm1d(outputs)
        layers[f"relu{number + 3}"] = nn.ReLU()
        layers[f"drop{number + 3}"] = nn.Dropout(0.5)
        inputs = outputs
    layers["fc3"] = nn.Linear(inputs, num_classes, bias=False)
    return nn.Sequential(layers)
