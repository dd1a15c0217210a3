"""Models of a few thousand parameters that exist for tests: seconds, not minutes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsebench.models.common import image_shape, scaled
from sparsebench.models.mlp import mlp
from sparsebench.models.vit import vit

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


class TinyConv(nn.Module):
    """Two 3x3 convolutions with batch norm, global average, one linear layer."""

    def __init__(self, in_channels: int, num_classes: int, first: int, second: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.conv2 = nn.Conv2d(first, second, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(second)
        self.fc = nn.Linear(second, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes) of images (batch, channels, height, width)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        out: Tensor = self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return out


def tiny_mlp(
    input_shape: tuple[int, ...], num_classes: int, *, width: float = 1.0
) -> nn.Sequential:
    """MLP with 32 and 16 hidden units; 2,778 parameters on (1, 8, 8) with 10 classes.

    Args:
        input_shape: shape of one example; flattened inside.
        num_classes: outputs.
        width: multiplies the hidden units.

    Returns:
        The network.
    """
    return mlp(input_shape, num_classes, width=width, hidden=(32, 16))


def tiny_conv(input_shape: tuple[int, ...], num_classes: int, *, width: float = 1.0) -> TinyConv:
    """Convolutions of 8 and 16 channels; 1,442 parameters on (1, 8, 8) with 10 classes.

    Args:
        input_shape: (channels, height, width).
        num_classes: outputs.
        width: multiplies the channels.

    Returns:
        The network.

    Raises:
        UserError: the data are not images.
    """
    channels, _, _ = image_shape(input_shape, "tiny_conv")
    return TinyConv(channels, num_classes, scaled(8, width), scaled(16, width))


def tiny_vit(
    input_shape: tuple[int, ...], num_classes: int, *, width: float = 1.0
) -> VisionTransformer:
    """Two blocks of 16 features on 2x2 patches; 5,018 parameters on (1, 8, 8), 10 classes.

    Args:
        input_shape: (channels, height, width), even sides.
        num_classes: outputs.
        width: multiplies the size of a head.

    Returns:
        The network.

    Raises:
        UserError: the data are not images with even sides.
    """
    return vit(
        input_shape,
        num_classes,
        width=width,
        depth=2,
        embed_dim=16,
        num_heads=2,
        patch_size=2,
        mlp_ratio=2.0,
    )
