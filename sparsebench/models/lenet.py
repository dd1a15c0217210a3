"""The convolutional LeNet-5 of the pruning literature."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsebench.models.common import image_shape, init_glorot, scaled


class LeNet5(nn.Module):
    """Two 5x5 convolutions without padding, each with max-pooling, and two linear layers."""

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        num_classes: int,
        channels: tuple[int, int],
        units: int,
    ) -> None:
        super().__init__()
        first, second = channels
        rows, columns = (((side - 4) // 2 - 4) // 2 for side in in_shape[1:])
        self.conv1 = nn.Conv2d(in_shape[0], first, 5)
        self.conv2 = nn.Conv2d(first, second, 5)
        self.fc1 = nn.Linear(second * rows * columns, units)
        self.fc2 = nn.Linear(units, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes) of images (batch, channels, height, width)."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        out: Tensor = self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))
        return out


def lenet5(input_shape: tuple[int, ...], num_classes: int, *, width: float = 1.0) -> LeNet5:
    """LeNet-5 in Caffe's sizes, the one with 431k parameters (arXiv:1506.02626, 1810.02340).

    20 and 50 filters of 5x5, 500 hidden units. On 28x28 images with 10 classes: 430,500
    weights, 431,080 parameters with the biases. ReLU follows the convolutions too, as in the
    papers' code; Caffe's own has it only before the last layer. Glorot normal initialisation.

    Args:
        input_shape: (channels, height, width), at least 16 pixels a side.
        num_classes: outputs.
        width: multiplies filters and hidden units.

    Returns:
        The network.

    Raises:
        UserError: the data are not images, or too small.
    """
    shape = image_shape(input_shape, "lenet5", smallest=16)
    model = LeNet5(shape, num_classes, (scaled(20, width), scaled(50, width)), scaled(500, width))
    init_glorot(model)
    return model
