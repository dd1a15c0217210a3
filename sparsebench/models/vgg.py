"""VGG for CIFAR with batch norm and one linear layer, as sparse-training papers use it.

The layers of arXiv:1409.1556 (table 1, A, D, E) up to the last pooling, then a global average
and the classifier: the net of GraSP (arXiv:2002.07376), SynFlow (2006.05467) and GraNet
(2106.10404). torchvision's VGG has three linear layers of 4096 units instead.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsebench.errors import bad_value
from sparsebench.models.common import image_shape, init_he, scaled

# Convolutions in each of the five stages; a 2x2 max-pooling stands between stages.
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
CHANNELS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Stages of 3x3 convolutions with batch norm, global average, one linear layer."""

    def __init__(
        self, in_channels: int, num_classes: int, stages: tuple[int, ...], width: float
    ) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        fan_in = in_channels
        for stage, convs in enumerate(stages, start=1):
            if stage > 1:
                layers[f"pool{stage - 1}"] = nn.MaxPool2d(2)
            channels = scaled(CHANNELS[stage - 1], width)
            for number in range(1, convs + 1):
                at = f"{stage}_{number}"
                layers[f"conv{at}"] = nn.Conv2d(fan_in, channels, 3, padding=1, bias=False)
                layers[f"bn{at}"] = nn.BatchNorm2d(channels)
                layers[f"relu{at}"] = nn.ReLU()
                fan_in = channels
        self.features = nn.Sequential(layers)
        self.fc = nn.Linear(fan_in, num_classes)
        init_he(self, mode="fan_out")
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes) of images (batch, channels, height, width)."""
        x = F.adaptive_avg_pool2d(self.features(x), 1)
        out: Tensor = self.fc(torch.flatten(x, 1))
        return out


def vgg(
    input_shape: tuple[int, ...], num_classes: int, *, width: float = 1.0, depth: int = 19
) -> VGG:
    """VGG-11, 13, 16 or 19 with batch norm.

    With 3 input channels and 10 classes VGG-11, 16 and 19 have 9,228,362, 14,724,042 and
    20,035,018 parameters. Initialisation as in GraNet's and torchvision's code: He fan-out,
    classifier normal with a deviation of 0.01.

    Args:
        input_shape: (channels, height, width), at least 16 pixels a side.
        num_classes: outputs.
        width: multiplies the channels.
        depth: 11, 13, 16 or 19.

    Returns:
        The network.

    Raises:
        UserError: no such depth, or the data are not images or too small.
    """
    if depth not in STAGES:
        raise bad_value("model.depth", str(depth), f"one of {', '.join(map(str, STAGES))}")
    in_channels, _, _ = image_shape(input_shape, f"vgg{depth}", smallest=16)
    return VGG(in_channels, num_classes, STAGES[depth], width)


vgg11 = partial(vgg, depth=11)
vgg13 = partial(vgg, depth=13)
vgg16 = partial(vgg, depth=16)
vgg19 = partial(vgg, depth=19)
