"""What several models share: the width rule, checks of the input, initialisation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from torch import nn

from sparsebench.errors import UserError, bad_value

CIFAR_STEM_UP_TO = 64  # pixels; above it a model made for ImageNet keeps its own first layer


_DOWN: ContextVar[bool] = ContextVar("rounded_down", default=False)


def scaled(units: float, width: float) -> int:
    """Hidden units or channels at a width: rounded to the nearest (halves up), at least 1."""
    exact = units * width
    return max(1, int(exact * (1.0 + 1e-12) if _DOWN.get() else exact + 0.5))


@contextmanager
def rounded_down() -> Iterator[None]:
    """Models built within have their widths rounded down, so that none costs more than asked."""
    token = _DOWN.set(True)
    try:
        yield
    finally:
        _DOWN.reset(token)


def image_shape(
    input_shape: tuple[int, ...], model: str, smallest: int = 1
) -> tuple[int, int, int]:
    """Check that the data are images that a model can take.

    Args:
        input_shape: shape of one example.
        model: name of the model, for the message.
        smallest: least height and width in pixels that leave something after the pooling.

    Returns:
        (channels, height, width).

    Raises:
        UserError: not an image, or too small.
    """
    if len(input_shape) != 3:
        raise UserError(
            f"model={model}: takes images (channels, height, width), "
            f"the data has the shape {tuple(input_shape)}"
        )
    channels, height, width = input_shape
    if min(height, width) < smallest:
        raise UserError(
            f"model={model}: needs images of at least {smallest}x{smallest} pixels, "
            f"the data has {height}x{width}"
        )
    return channels, height, width


def small_stem(stem: str | None, input_shape: tuple[int, ...]) -> bool:
    """Whether the first layers keep the resolution, as networks for CIFAR do.

    Args:
        stem: "cifar", "imagenet", or None to choose by the size of the image.
        input_shape: (channels, height, width).

    Returns:
        True for the CIFAR stem: asked for, or not asked and the image is at most 64 pixels.

    Raises:
        UserError: another stem was asked for.
    """
    if stem not in (None, "cifar", "imagenet"):
        raise bad_value("model.stem", str(stem), "cifar or imagenet", ("cifar", "imagenet"))
    if stem is None:
        return max(input_shape[1:]) <= CIFAR_STEM_UP_TO
    return stem == "cifar"


def check_dropout(rate: float) -> None:
    """Refuse a dropout rate outside [0, 1)."""
    if not 0 <= rate < 1:
        raise bad_value("model.dropout", str(rate), "a number from 0 to below 1")


def init_he(model: nn.Module, mode: Literal["fan_in", "fan_out"] = "fan_in") -> None:
    """He initialisation of all convolutions: variance 2 / fan (arXiv:1502.01852, eq. 10, 14).

    Args:
        model: the network, changed in place.
        mode: "fan_in" keeps the variance of the activations, "fan_out" that of the gradients.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_glorot(model: nn.Module) -> None:
    """Glorot normal weights and zero biases, as the lottery ticket paper's LeNet has."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
