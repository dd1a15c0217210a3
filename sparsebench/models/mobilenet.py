"""MobileNet V1 (own, for torchvision has none) and V2 (torchvision's)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsebench.models.common import check_dropout, image_shape, init_he, scaled, small_stem

if TYPE_CHECKING:
    from torchvision.models import MobileNetV2

# Output channels and stride of the 13 separable convolutions (arXiv:1704.04861, table 1).
SEPARABLE = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
    (512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip


def _conv(
    fan_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    padding = kernel // 2
    conv = nn.Conv2d(fan_in, channels, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())


class MobileNetV1(nn.Module):
    """A 3x3 convolution and 13 pairs of a depthwise 3x3 and a pointwise 1x1 convolution."""

    def __init__(self, in_channels: int, num_classes: int, width: float, stem_stride: int) -> None:
        super().__init__()
        fan_in = scaled(32, width)
        self.stem = _conv(in_channels, fan_in, 3, stem_stride)
        blocks = []
        for full, stride in SEPARABLE:
            channels = scaled(full, width)
            depthwise = _conv(fan_in, fan_in, 3, stride, groups=fan_in)
            blocks.append(nn.Sequential(depthwise, _conv(fan_in, channels, 1)))
            fan_in = channels
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(fan_in, num_classes)
        init_he(self, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes) of images (batch, channels, height, width)."""
        x = F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1)
        out: Tensor = self.fc(torch.flatten(x, 1))
        return out


def mobilenet_v1(
    input_shape: tuple[int, ...], num_classes: int, *, width: float = 1.0, stem: str | None = None
) -> MobileNetV1:
    """MobileNet V1 (Howard et al. 2017, arXiv:1704.04861).

    With 1000 classes 4,231,976 parameters at width 1 (the paper: 4.2M; 2.6M, 1.3M and 0.5M at
    0.75, 0.5 and 0.25). He initialisation, fan-out, as torchvision gives V2.

    Args:
        input_shape: (channels, height, width).
        num_classes: outputs.
        width: multiplies the channels: the paper's alpha.
        stem: "imagenet" (first convolution of stride 2) or "cifar" (stride 1); None chooses
            "cifar" for images of at most 64 pixels.

    Returns:
        The network.

    Raises:
        UserError: no such stem, or the data are not images.
    """
    in_channels, _, _ = image_shape(input_shape, "mobilenet_v1")
    return MobileNetV1(in_channels, num_classes, width, 1 if small_stem(stem, input_shape) else 2)


def mobilenet_v2(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    width: float = 1.0,
    stem: str | None = None,
    dropout: float = 0.2,
) -> MobileNetV2:
    """MobileNet V2 (Sandler et al. 2018, arXiv:1801.04381), torchvision's.

    With 1000 classes 3,504,872 parameters at width 1.

    Args:
        input_shape: (channels, height, width).
        num_classes: outputs.
        width: multiplies the channels, which torchvision rounds to multiples of 8 (at least
            8); the last layer's 1280 features grow with it but do not shrink.
        stem: as for ``mobilenet_v1``.
        dropout: rate before the classifier.

    Returns:
        The network.

    Raises:
        UserError: no such stem or dropout, or the data are not images.
    """
    from torchvision.models import MobileNetV2

    check_dropout(dropout)
    in_channels, _, _ = image_shape(input_shape, "mobilenet_v2")
    net = MobileNetV2(num_classes, width_mult=width, dropout=dropout)
    first = net.features[0][0]
    if small_stem(stem, input_shape):
        first.stride = (1, 1)
    if in_channels != first.in_channels:
        conv = nn.Conv2d(in_channels, first.out_channels, 3, first.stride, 1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out")
        net.features[0][0] = conv
    return net
