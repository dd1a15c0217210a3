"""Wide residual networks (Zagoruyko and Komodakis 2016, arXiv:1605.07146, table 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsebench.errors import bad_value
from sparsebench.models.common import check_dropout, image_shape, init_he, scaled


class WideBlock(nn.Module):
    """Pre-activation block: norm, ReLU, 3x3 convolution, twice, with dropout between them."""

    def __init__(self, fan_in: int, channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(fan_in)
        self.conv1 = nn.Conv2d(fan_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.dropout = dropout
        self.shortcut: nn.Conv2d | None = None
        if fan_in != channels or stride != 1:
            self.shortcut = nn.Conv2d(fan_in, channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features (batch, channels, height / stride, width / stride)."""
        active = F.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(active)
        hidden = F.relu(self.bn2(self.conv1(active)))
        out: Tensor = self.conv2(F.dropout(hidden, self.dropout, self.training)) + skip
        return out


class WideResNet(nn.Module):
    """One 3x3 convolution, three groups of blocks, norm, ReLU, global average, linear layer."""

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        blocks: int,
        channels: tuple[int, int, int, int],
        dropout: float,
    ) -> None:
        super().__init__()
        stem, first, second, third = channels
        self.conv1 = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        self.layer1 = _group(stem, first, blocks, 1, dropout)
        self.layer2 = _group(first, second, blocks, 2, dropout)
        self.layer3 = _group(second, third, blocks, 2, dropout)
        self.bn = nn.BatchNorm2d(third)
        self.fc = nn.Linear(third, num_classes)
        init_he(self, mode="fan_out")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes) of images (batch, channels, height, width)."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = F.adaptive_avg_pool2d(F.relu(self.bn(x)), 1)
        out: Tensor = self.fc(torch.flatten(x, 1))
        return out


def _group(fan_in: int, channels: int, blocks: int, stride: int, dropout: float) -> nn.Sequential:
    first = WideBlock(fan_in, channels, stride, dropout)
    rest = (WideBlock(channels, channels, 1, dropout) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def wrn(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    width: float = 1.0,
    depth: int = 28,
    widen: float = 10,
    dropout: float = 0.0,
) -> WideResNet:
    """WRN-depth-widen: ``16 * widen``, ``32 * widen``, ``64 * widen`` channels.

    The depth counts as in the paper: 6n + 4 with the three 1x1 shortcuts. With 3 input
    channels and 10 classes WRN-22-2 has 1,079,642 parameters, WRN-28-10 36,479,194 and
    WRN-16-8 10,961,370. He initialisation, fan-out, as in the authors' code.

    Args:
        input_shape: (channels, height, width).
        num_classes: outputs.
        width: multiplies all channels, those of the first convolution (16) too.
        depth: number of layers, 6n + 4.
        widen: the paper's k, which leaves the first convolution at 16; need not be whole.
        dropout: rate between the two convolutions of a block (the paper's is 0 or 0.3).

    Returns:
        The network.

    Raises:
        UserError: depth, widen or dropout out of range, or the data are not images.
    """
    if depth < 10 or (depth - 4) % 6:
        raise bad_value("model.depth", str(depth), "6n + 4 is needed, such as 16, 22, 28 or 40")
    if widen <= 0:
        raise bad_value("model.widen", str(widen), "a number above 0 is needed")
    check_dropout(dropout)
    in_channels, _, _ = image_shape(input_shape, f"wrn_{depth}_{widen:g}")
    stem, first, second, third = (
        scaled(units, width) for units in (16, 16 * widen, 32 * widen, 64 * widen)
    )
    channels = stem, first, second, third
    return WideResNet(in_channels, num_classes, (depth - 4) // 6, channels, dropout)
