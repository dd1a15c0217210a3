"""Whether a model takes an input, found out on a shadow of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def refusal(
    make: Callable[[], nn.Module], input_shape: tuple[int, ...], num_classes: int
) -> str | None:
    """Run the shapes of a batch through a model, in training mode, on the meta device.

    Args:
        make: builds the model; the copies built here are thrown away, since some models keep
            tensors of their last input.
        input_shape: shape of one example.
        num_classes: outputs expected.

    Returns:
        Why the model cannot be trained on such input, or None if it can. No random number
        is drawn.

    Raises:
        Exception: whatever ``make`` raises when the model cannot be built at all.
    """
    try:
        with torch.device("meta"):
            output = make()(torch.empty(2, *input_shape))
    except Exception:  # the input is wrong, or the model looks at values: then with real ones
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            model = make().eval()
            try:
                output = model(torch.zeros(2, *input_shape))
            except Exception as error:  # a library raises whatever it likes here
                return first_line(error)
    if not isinstance(output, Tensor):
        return f"it gives {type(output).__name__}, one tensor of logits is needed"
    if tuple(output.shape) != (2, num_classes):
        return f"it gives {tuple(output.shape)} for two examples, not (2, {num_classes})"
    return None


def first_line(error: Exception) -> str:
    """The first line of an error's message, cut to a readable length."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:160]
