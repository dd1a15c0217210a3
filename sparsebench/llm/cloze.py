"""A zero-shot check on any text: which of four continuations is the true one.

An item is some tokens of the text and what follows them; the three others are runs of as many
tokens from the same neighbourhood, so that neither topic nor style gives the answer away. The model
chooses the one it finds most likely; by chance it is right in a quarter of the items.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsebench.errors import UserError
from sparsebench.llm.likelihood import Likelihood

CHOICES = 4


@dataclass(frozen=True)
class Share:
    """How many of some items are right, with the 95 % interval of Wilson's score."""

    right: int
    items: int

    @property
    def value(self) -> float:
        """The share itself."""
        return self.right / self.items

    @property
    def interval(self) -> tuple[float, float]:
        """Its lower and upper bound."""
        z, n, p = 1.959964, self.items, self.value
        centre, scale = p + z * z / (2 * n), 1 + z * z / n
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return (centre - half) / scale, (centre + half) / scale


def items_of(ids: Tensor, items: int, context: int, continuation: int) -> Tensor:
    """Items spread evenly over a text; the true continuation is the first choice of each.

    Args:
        ids: tokens of the text.
        items: how many.
        context: tokens that are given.
        continuation: tokens of a choice.

    Returns:
        Token ids (items, choices, context + continuation).

    Raises:
        UserError: the text is too short for as many items that do not overlap.
    """
    length = context + CHOICES * continuation  # of an item's own stretch of the text
    room = len(ids) // items
    if room < length:
        raise UserError(
            f"eval.questions={items}: with eval.context={context} eval.continuation={continuation} "
            f"the text has room for {len(ids) // length}"
        )
    draw = random.Random(0)
    found = torch.empty(items, CHOICES, context + continuation, dtype=ids.dtype)
    for number in range(items):
        start = number * room + draw.randint(0, room - length)
        found[number, :, :context] = ids[start : start + context]
        rest = ids[start + context : start + length]
        found[number, :, context:] = rest.view(CHOICES, continuation)
    return found


def cloze(
    likelihood: Likelihood,
    items: Tensor,
    continuation: int,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Share:
    """Have the model choose; of equally likely choices the first does not count.

    Args:
        likelihood: of the model.
        items: (items, choices, tokens), the first choice being the true one.
        continuation: tokens of a choice.
        report: is told choices weighed, and how many there are.
    """
    sequences = list(items.flatten(0, 1))
    losses = []
    for number, each in enumerate(likelihood.losses(sequences), 1):
        losses.append(float(each[-continuation:].double().sum()))
        report(number, len(sequences))
    choices = torch.tensor(losses, dtype=torch.float64).view(len(items), -1)
    right = choices[:, 0] < choices[:, 1:].min(dim=1).values
    return Share(int(right.sum()), len(items))
