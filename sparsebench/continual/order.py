"""Which classes each task of a stream has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from sparsebench.data.seeding import generator
from sparsebench.errors import UserError, bad_value

Item = TypeVar("Item")


def tasks_of(
    config: Any, classes: int, names: Sequence[str] | None = None
) -> tuple[tuple[int, ...], ...]:
    """For each task its classes, in the order of their outputs.

    The order of classes is the config's, or the data's, permuted by a seed of its own if there
    is one. It decides nothing else, and nothing else decides it.

    Args:
        config: the config group ``stream``.
        classes: classes of the data.
        names: their names; None where they are not known yet.

    Raises:
        UserError: an unknown class, one that is named twice, or too few for so many tasks.
    """
    order = list(range(classes)) if config.classes is None else _listed(config, classes, names)
    if config.kind != "split":
        order = _shuffled(order, config.class_order_seed)
        return tuple(tuple(order) for _ in range(config.tasks))
    size, rest = divmod(len(order), config.tasks)
    if rest or size == 0:
        fit = [n for n in range(1, len(order) + 1) if len(order) % n == 0]
        raise bad_value(
            "stream.tasks",
            config.tasks,
            f"{len(order)} classes can't be shared out evenly; {', '.join(map(str, fit))} can",
        )
    if size == 1 and config.scenario != "class_il":
        raise bad_value(
            "stream.tasks", config.tasks, "with one class a task there is nothing to tell apart"
        )
    if config.shuffle == "classes":
        order = _shuffled(order, config.class_order_seed)
    blocks = [tuple(order[n : n + size]) for n in range(0, len(order), size)]
    if config.shuffle == "tasks":
        blocks = _shuffled(blocks, config.class_order_seed)
    return tuple(blocks)


def _shuffled(items: list[Item], seed: int | None) -> list[Item]:
    if seed is None:
        return items
    order = torch.randperm(len(items), generator=generator("class order", seed))
    return [items[n] for n in order.tolist()]


def _listed(config: Any, classes: int, names: Sequence[str] | None) -> list[int]:
    """Numbers of the classes that the config lists by name or number; below 0 if not known yet."""
    found: list[int] = []
    for given in map(str, config.classes):
        if names and given in names:
            number = list(names).index(given)
        elif given.isdecimal() and int(given) < classes:
            number = int(given)
        elif names is None and not given.isdecimal():
            number = -1 - len(found)
        else:
            allowed = f"no such class among the {classes} of the data"
            raise bad_value("stream.classes", given, allowed, names or ())
        if number in found:
            raise UserError(f"stream.classes={given}: is named twice")
        found.append(number)
    return found
