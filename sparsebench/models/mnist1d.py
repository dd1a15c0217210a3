"""The four models of MNIST-1D (arXiv:2011.14439; sizes from its repository's notebooks).

All keep PyTorch's initialisation. With 40 inputs and 10 classes they have 410, 15,210, 5,210
and 5,134 parameters, the figures printed there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsebench.models.common import scaled
from sparsebench.models.mlp import mlp


class ResidualMLP(nn.Module):
    """Three linear layers, the second with a skip connection around it."""

    def __init__(self, features: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes) of signals (batch, features)."""
        h = F.relu(self.fc1(torch.flatten(x, 1)))
        out: Tensor = self.fc3(h + F.relu(self.fc2(h)))
        return out


class SignalCNN(nn.Module):
    """Three 1-D convolutions of stride 2 and a linear layer."""

    def __init__(self, features: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(1, channels, 5, stride=2, padding=1)
        self.conv2 = nn.Conv1d(channels, channels, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(channels, channels, 3, stride=2, padding=1)
        length = (features - 3) // 2 + 1  # 40 -> 19 -> 10 -> 5
        length = math.ceil(math.ceil(length / 2) / 2)
        self.fc = nn.Linear(channels * length, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes) of signals (batch, features)."""
        x = torch.flatten(x, 1).unsqueeze(1)
        x = F.relu(self.conv3(F.relu(self.conv2(F.relu(self.conv1(x))))))
        out: Tensor = self.fc(torch.flatten(x, 1))
        return out


class SignalGRU(nn.Module):
    """A bidirectional GRU over the signal and a linear layer over all its outputs."""

    def __init__(self, features: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.gru = nn.GRU(1, hidden, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * hidden * features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes) of signals (batch, features)."""
        states, _ = self.gru(torch.flatten(x, 1).unsqueeze(2))
        out: Tensor = self.fc(torch.flatten(states, 1))
        return out


def mnist1d_logistic(input_shape: tuple[int, ...], num_classes: int) -> nn.Sequential:
    """Logistic regression: one linear layer, so there is no width to change.

    Args:
        input_shape: shape of one example; flattened inside.
        num_classes: outputs.

    Returns:
        The model.
    """
    return mlp(input_shape, num_classes, hidden=())


def mnist1d_mlp(
    input_shape: tuple[int, ...], num_classes: int, *, width: float = 1.0
) -> ResidualMLP:
    """MLP with two hidden layers of 100 units.

    Args:
        input_shape: shape of one example; flattened inside.
        num_classes: outputs.
        width: multiplies the hidden units.

    Returns:
        The model.
    """
    return ResidualMLP(math.prod(input_shape), scaled(100, width), num_classes)


def mnist1d_cnn(input_shape: tuple[int, ...], num_classes: int, *, width: float = 1.0) -> SignalCNN:
    """1-D CNN with 25 channels.

    Args:
        input_shape: shape of one example; flattened to one signal of at least 3 values.
        num_classes: outputs.
        width: multiplies the channels.

    Returns:
        The model.
    """
    return SignalCNN(math.prod(input_shape), scaled(25, width), num_classes)


def mnist1d_gru(input_shape: tuple[int, ...], num_classes: int, *, width: float = 1.0) -> SignalGRU:
    """Bidirectional GRU with 6 hidden units in each direction.

    Args:
        input_shape: shape of one example; flattened to one signal.
        num_classes: outputs.
        width: multiplies the hidden units.

    Returns:
        The model.
    """
    return SignalGRU(math.prod(input_shape), scaled(6, width), num_classes)
