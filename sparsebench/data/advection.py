"""Synthetic fields carried by a steady wind, where it is known which places tell the future."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsebench.data.images import DataSets
from sparsebench.data.options import Options
from sparsebench.data.tensors import TensorRows, fingerprint
from sparsebench.errors import UserError, bad_value
from sparsebench.sparsity.fields import read_options
from sparsebench.sparsity.spec import number, whole


@dataclass(frozen=True)
class Field:
    """A record of a field, cut into windows.

    Attributes:
        x: windows, float32 [N, times, height, width], in order of time.
        y: what is to be forecast, float32 [N, outputs].
        reach: windows further apart than this have no measurement in common.
        test: number of windows at the end to test on.
        informative: bool [height, width], places whose measurements tell of the outputs.
    """

    x: Tensor
    y: Tensor
    reach: int
    test: int
    informative: Tensor


@dataclass(frozen=True)
class Wind:
    """Options of :func:`advection`."""

    height: int = whole(16, 2, "rows")
    width: int = whole(16, 2, "columns")
    speed: int = whole(1, 1, "columns that the wind carries the field a step, to the right")
    window: int = whole(4, 1, "times that the forecaster sees")
    horizon: int = whole(4, 1, "steps from the last of these to the forecast")
    rows: int = whole(6, 1, "rows of the target, in the middle")
    columns: int = whole(4, 1, "columns of the target, the last ones")
    noise: float = number(1.5, "[0, inf)", "greatest deviation of a sensor's own noise")
    train: int = whole(2000, 1, "windows to train and validate on")
    test: int = whole(500, 1, "windows to test on")
    seed: int = whole(0, 0, "of the data")


def advection(config: Mapping[str, Any]) -> Field:
    """A field f(row, column, t) = f(row, column - speed, t - 1), fed by white noise on the left.

    Each sensor adds white noise of its own, whose deviation is uniform in [0, noise]. To be
    forecast is the field itself, free of noise, in a block at the right edge, ``horizon`` steps
    after the window. As inflow is independent in time and by row, measurements tell of it where
    the same air was, and nowhere else: at column c of the target's rows at k steps before the
    window's end if c + speed (horizon + k) is a column of the target.

    Args:
        config: the group ``data``; its ``args`` are those of :class:`Wind`.

    Raises:
        UserError: a target that is larger than the field, or beyond the reach of all sensors.
    """
    plan = read_options(Wind, config.get("args") or {}, "data.args")
    for name, most in (("rows", plan.height), ("columns", plan.width)):
        if getattr(plan, name) > most:
            raise bad_value(f"data.args.{name}", getattr(plan, name), f"the field has {most}")
    top, left = (plan.height - plan.rows) // 2, plan.width - plan.columns
    informative = torch.zeros(plan.height, plan.width, dtype=torch.bool)
    for back in range(plan.window):
        for column in range(left, plan.width):
            source = column - plan.speed * (plan.horizon + back)
            if source >= 0:
                informative[top : top + plan.rows, source] = True
    if plan.width - 1 < plan.speed * plan.horizon:
        raise bad_value(
            "data.args.horizon", plan.horizon, "no air of the target is over a sensor that early"
        )
    x, y = _simulate(plan)
    rows, columns = slice(top, top + plan.rows), slice(left, plan.width)
    return Field(x, y[:, rows, columns].flatten(1), plan.window - 1, plan.test, informative)


def _simulate(plan: Wind) -> tuple[Tensor, Tensor]:
    """Windows of measurements [N, times, h, w] and the field later [N, h, w]."""
    stream = torch.Generator().manual_seed(plan.seed)
    gap = plan.window - 1  # between training and test
    windows = plan.train + gap + plan.test
    times = windows + plan.window - 1 + plan.horizon
    inflow = torch.randn(plan.height, plan.speed * times + plan.width, generator=stream)
    when = plan.speed * torch.arange(times)[:, None] - torch.arange(plan.width) + plan.width - 1
    field = inflow[:, when].permute(1, 0, 2)  # [times, height, width]
    own = plan.noise * torch.rand(plan.height, plan.width, generator=stream)
    seen = field + own * torch.randn(field.shape, generator=stream)
    first = torch.arange(windows)
    x = seen[first[:, None] + torch.arange(plan.window)]
    return x.contiguous(), field[first + plan.window - 1 + plan.horizon]


def split(found: Field, options: Options) -> DataSets:
    """Training, validation and test windows, in this order of time, with no measurement shared.

    Args:
        found: the record.
        options: the config group ``data``: name and ``validation``, a share of the windows before
            the test, or a count of them.

    Raises:
        UserError: dials that mean nothing here, or no window is left.
    """
    if options.subset is not None:
        raise bad_value("data.subset", options.subset, "windows in time have no subset")
    before = len(found.x) - found.test - found.reach
    share = options.validation
    held = int(share * before) if share < 1 else int(share)
    train = before - held - (found.reach if held else 0)
    if share < 0 or train < 1 or (share and not held):
        raise bad_value(
            "data.validation", share, f"of {before} windows, some to train on must stay"
        )

    def rows(begin: int, end: int) -> TensorRows:
        return TensorRows((found.x[begin:end].contiguous(), found.y[begin:end].contiguous()))

    parts = (
        rows(0, train), rows(before - held, before) if held else None,
        rows(len(found.x) - found.test, len(found.x)),
    )  # fmt: skip
    return DataSets(
        name=options.name,
        num_classes=found.y.shape[1],
        input_shape=tuple(found.x.shape[1:]),
        train=parts[0],
        validation=parts[1],
        test=parts[2],
        class_names=(),
        fingerprint=fingerprint(*parts),
        facts={"informative": found.informative},
    )


def check(found: object, name: str) -> Field:
    """What a builder gave, if it is a field.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(found, Field):
        raise UserError(f"data={name}: task=forecast needs a field, such as data=advection")
    return found
