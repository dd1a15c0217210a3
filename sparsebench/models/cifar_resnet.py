"""The small ResNets for CIFAR (He et al. 2016, arXiv:1512.03385, section 4.2)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsebench.errors import bad_value
from sparsebench.models.common import image_shape, init_he, scaled


class Block(nn.Module):
    """Two 3x3 convolutions around which the input is added, without parameters (option A)."""

    def __init__(self, fan_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.new_channels = channels - fan_in

    def shortcut(self, x: Tensor) -> Tensor:
        """The input at the block's output size: every second pixel, new channels zero."""
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.new_channels)) if self.new_channels else x

    def forward(self, x: Tensor) -> Tensor:
        """Features (batch, channels, height / stride, width / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """One 3x3 convolution, three stages of blocks, global average, one linear layer."""

    def __init__(
        self, in_channels: int, num_classes: int, blocks: int, channels: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.layer1 = _stage(channels[0], channels[0], blocks, stride=1)
        self.layer2 = _stage(channels[0], channels[1], blocks, stride=2)
        self.layer3 = _stage(channels[1], channels[2], blocks, stride=2)
        self.fc = nn.Linear(channels[2], num_classes)
        init_he(self)
        nn.init.kaiming_normal_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes) of images (batch, channels, height, width)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        out: Tensor = self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return out


def _stage(fan_in: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = Block(fan_in, channels, stride)
    return nn.Sequential(first, *(Block(channels, channels, 1) for _ in range(blocks - 1)))


def cifar_resnet(
    input_shape: tuple[int, ...], num_classes: int, *, width: float = 1.0, depth: int = 20
) -> CifarResNet:
    """ResNet-20, 32, 44, 56, 110 and any other depth 6n + 2, 16-32-64 channels.

    With 3 input channels and 10 classes: 269,722, 464,154, 658,586, 853,018 and 1,727,962
    parameters (the paper's table 6: 0.27M, 0.46M, 0.66M, 0.85M, 1.7M). He initialisation,
    fan-in.

    Args:
        input_shape: (channels, height, width).
        num_classes: outputs.
        width: multiplies the channels.
        depth: number of layers with weights, 6n + 2.

    Returns:
        The network.

    Raises:
        UserError: no such depth, or the data are not images.
    """
    if depth < 8 or (depth - 2) % 6:
        raise bad_value("model.depth", str(depth), "6n + 2 is needed, such as 20, 32, 56 or 110")
    in_channels, _, _ = image_shape(input_shape, f"resnet{depth}")
    channels = scaled(16, width), scaled(32, width), scaled(64, width)
    return CifarResNet(in_channels, num_classes, (depth - 2) // 6, channels)


resnet20 = partial(cifar_resnet, depth=20)
resnet32 = partial(cifar_resnet, depth=32)
resnet44 = partial(cifar_resnet, depth=44)
resnet56 = partial(cifar_resnet, depth=56)
resnet110 = partial(cifar_resnet, depth=110)
