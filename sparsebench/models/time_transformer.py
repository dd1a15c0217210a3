"""A tiny transformer for time series, such as light curves of several bands."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsebench.errors import bad_value
from sparsebench.models.common import check_dropout, scaled


class Block(nn.Module):
    """Self-attention and two linear layers, each with a shortcut, dropout and norm behind it."""

    def __init__(self, features: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(features, features)
        self.key = nn.Linear(features, features)
        self.value = nn.Linear(features, features)
        self.out = nn.Linear(features, features)
        self.norm1 = nn.LayerNorm(features, eps=1e-6)
        self.fc1 = nn.Linear(features, hidden)
        self.fc2 = nn.Linear(hidden, features)
        self.norm2 = nn.LayerNorm(features, eps=1e-6)
        self.dropout = nn.Dropout(0.1)

    def attend(self, x: Tensor) -> Tensor:
        """Each step from all steps: (batch, steps, features) to the same."""
        batch, steps, features = x.shape
        q, k, v = (
            layer(x).view(batch, steps, self.heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        out: Tensor = self.out(seen.reshape(batch, steps, features))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """(batch, steps, features) to the same."""
        x = self.norm1(x + self.dropout(self.attend(x)))
        out: Tensor = self.norm2(x + self.dropout(self.fc2(F.relu(self.fc1(x)))))
        return out


class TimeTransformer(nn.Module):
    """Convolution over time, positions, blocks, mean over time, one linear layer."""

    positions: Tensor

    def __init__(
        self, bands: int, steps: int, num_classes: int, features: int, heads: int, hidden: int,
        depth: int, kernel: int, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.bands = bands
        self.embedding = nn.Conv1d(bands, features, kernel, padding=kernel // 2)
        self.register_buffer("positions", sinusoids(steps, features), persistent=False)
        self.blocks = nn.Sequential(*(Block(features, heads, hidden) for _ in range(depth)))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(features, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias if module.bias is not None else torch.empty(0))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes) of series (batch, bands, steps), or of one band as a vector."""
        x = F.relu(self.embedding(x.reshape(len(x), self.bands, -1))).transpose(1, 2)
        x = self.blocks(x + self.positions)
        out: Tensor = self.fc(self.dropout(x.mean(1)))
        return out


def sinusoids(steps: int, features: int) -> Tensor:
    """Sines in even and cosines in odd places (arXiv 1706.03762), [steps, features]."""
    even = torch.arange(0, features, 2)
    angles = torch.arange(steps)[:, None] / 10000 ** (even / features)
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1)[:, :features]


def time_transformer(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    width: float = 1.0,
    depth: int = 1,
    dropout: float = 0.1,
    embed_dim: int = 32,
    num_heads: int = 16,
    ff_dim: int = 128,
    kernel: int = 1,
) -> TimeTransformer:
    """The transformer t2 of the tiny time-series transformer (arXiv 2303.08951, section 3).

    Sizes and form are those of the code (github.com/tallamjr/astronet, ``astronet/t2``): norms
    behind the sums, Keras' initialisation, biases zero. With 2 bands of 100 steps and 7 classes it
    has 13,031 parameters. Differs on purpose: it gives logits, as all models here.

    Args:
        input_shape: (bands, steps), or (steps,) for one band; more dimensions count as steps.
        num_classes: outputs.
        width: multiplies the size of a head and the hidden units; the number of heads stays.
        depth: number of blocks.
        dropout: rate before the classifier; within a block it is 0.1.
        embed_dim: features of a step at width 1; a multiple of ``num_heads``.
        num_heads: attention heads.
        ff_dim: hidden units of a block's linear layers.
        kernel: steps that the first convolution sees at once, odd; 1 in the paper.

    Returns:
        The network.

    Raises:
        UserError: a value out of range.
    """
    check_dropout(dropout)
    if embed_dim % num_heads:
        raise bad_value("model.args.embed_dim", embed_dim, f"a multiple of num_heads={num_heads}")
    if kernel < 1 or kernel % 2 == 0:
        raise bad_value("model.args.kernel", kernel, "an odd number above 0")
    bands, steps = (1, input_shape[0]) if len(input_shape) == 1 else (
        input_shape[0], math.prod(input_shape[1:])
    )  # fmt: skip
    features = num_heads * scaled(embed_dim // num_heads, width)
    return TimeTransformer(
        bands, steps, num_classes, features, num_heads, scaled(ff_dim, width), depth, kernel,
        dropout,
    )  # fmt: skip
