"""A small convolutional network whose logits depend on one image alone, for streams of tasks."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from sparsebench.models.common import image_shape, scaled


def small_cnn(
    input_shape: tuple[int, ...], num_classes: int, *, width: float = 1.0
) -> nn.Sequential:
    """Three 3x3 convolutions of 16, 32 and 64 channels and stride 2, a mean, and a linear layer.

    After each comes a group norm without parameters. It has no statistics of batches and no
    biases, so that all there is to keep of a task are its weights; 24,112 of them on (3, 32, 32)
    with 10 classes.

    Args:
        input_shape: (channels, height, width), of any size.
        num_classes: outputs.
        width: multiplies the channels.

    Returns:
        The network.

    Raises:
        UserError: the data are not images.
    """
    channels, _, _ = image_shape(input_shape, "small_cnn")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, plain in enumerate((16, 32, 64), 1):
        wide = scaled(plain, width)
        layers[f"conv{number}"] = nn.Conv2d(channels, wide, 3, stride=2, padding=1, bias=False)
        layers[f"norm{number}"] = nn.GroupNorm(1, wide, affine=False)
        layers[f"relu{number}"] = nn.ReLU()
        channels = wide
    layers["mean"] = nn.AdaptiveAvgPool2d(1)
    layers["flat"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels, num_classes, bias=False)
    return nn.Sequential(layers)
