"""From a model config to a module: which dials go to which builder, and what is refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sparsebench.errors import UserError, bad_value, nearest

if TYPE_CHECKING:
    from torch import nn

# What every config may set; a builder takes those its signature names.
DIALS = ("name", "width", "pretrained", "checkpoint", "hidden", "depth", "widen", "stem", "dropout")
# Values that ask for nothing: a builder that does not have the dial is not bothered with them.
NEUTRAL: dict[str, Any] = {"width": 1.0, "pretrained": False, "dropout": 0.0}


def build(
    config: Mapping[str, Any],
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    width: float | None = None,
    allow: Sequence[str] = (),
) -> nn.Module:
    """Build the model that a config describes.

    Args:
        config: keys ``_target_`` (import path of a builder or of a module class), ``name``,
            ``width``, ``num_classes``, ``pretrained``, ``checkpoint``, ``hidden``, ``depth``,
            ``widen``, ``stem``, ``dropout`` and ``args`` (further keyword arguments).
        input_shape: (channels, height, width) of an image, or (features,) of a vector.
        num_classes: outputs the data needs.
        width: replaces the config's width, for baselines of matched size.
        allow: packages that may be named beside the built-in ones.

    Returns:
        The model, on the current default device.

    Raises:
        UserError: a value or a dial does not fit.
    """
    from sparsebench.config.importing import resolve

    target = str(config.get("_target_"))
    builder = resolve(target, "model._target_", allow)
    if not callable(builder):
        raise UserError(f"model._target_={target}: neither a class nor a function")
    wanted = config.get("num_classes")
    if wanted is not None and wanted != num_classes:
        raise bad_value("model.num_classes", wanted, f"the data has {num_classes} classes")
    dials = {dial: config.get(dial) for dial in DIALS}
    if width is not None:
        dials["width"] = width
    _check_width(dials["width"])
    extra = dict(config.get("args") or {})
    signature = _signature(target, builder)
    takes = signature.parameters
    load_here = dials["checkpoint"] is not None and "checkpoint" not in takes
    checkpoint = dials.pop("checkpoint") if load_here else None
    new_head = bool(dials.pop("pretrained")) if load_here else False
    given = _arguments(target, takes, dials, extra)
    if "input_shape" in takes:
        given["input_shape"] = tuple(input_shape)
    if "num_classes" in takes:
        given["num_classes"] = num_classes
    model = _call(target, builder, signature, given)
    if checkpoint is not None:
        from sparsebench.models.checkpoint import load_weights

        load_weights(model, checkpoint, num_classes=num_classes, new_head=new_head)
    return model


def _check_width(width: float | None) -> None:
    if width is not None and not 0 < width < float("inf"):
        raise bad_value("model.width", str(width), "a finite number above 0 is needed")


def _signature(target: str, builder: Callable[..., object]) -> inspect.Signature:
    try:
        return inspect.signature(builder)
    except ValueError as error:  # functions written in C
        raise UserError(f"model._target_={target}: {error}, wrap it in a function") from error


def _arguments(
    target: str,
    parameters: Mapping[str, inspect.Parameter],
    dials: dict[str, Any],
    extra: dict[str, Any],
) -> dict[str, Any]:
    """The keyword arguments for the builder, every one of which it takes."""
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    given: dict[str, Any] = {}
    for dial, value in dials.items():
        if value is None or (dial == "name" and dial not in parameters):
            continue  # the name is a label, except where a library looks the model up by it
        if NEUTRAL.get(dial) == value and (dial != "dropout" or dial not in parameters):
            continue  # a dropout of 0 counts where the builder's own default is another
        if dial not in parameters and not open_ended:
            takes = [key for key in parameters if key in DIALS]
            raise _unknown(f"model.{dial}", value, target, takes)
        given[dial] = list(value) if dial == "hidden" else value
    if not extra:
        return given
    if "args" in parameters:
        return {**given, "args": extra}
    for key, value in extra.items():
        if key in given:
            raise UserError(f"model.args.{key}={value}: model.{key} says {given[key]} already")
        if key in ("input_shape", "num_classes"):
            raise UserError(f"model.args.{key}={value}: this comes from the data")
        if key not in parameters and not open_ended:
            takes = [p for p in parameters if p not in ("input_shape", "num_classes")]
            raise _unknown(f"model.args.{key}", value, target, takes)
    return {**given, **extra}


def _unknown(key: str, value: object, target: str, takes: list[str]) -> UserError:
    hint = nearest(key.rpartition(".")[2], takes)
    return UserError(
        f"{key}={value}: {target} has no such dial; its dials are: {', '.join(takes) or 'none'}"
        + (f"; did you mean '{hint}'?" if hint else "")
    )


def _call(
    target: str, builder: Callable[..., object], signature: inspect.Signature, given: dict[str, Any]
) -> nn.Module:
    from torch import nn

    for key, parameter in signature.parameters.items():
        optional = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if key not in given and parameter.default is parameter.empty and not optional:
            at = f"model.{key}" if key in DIALS else f"model.args.{key}"
            raise UserError(f"{at} is missing: {target} cannot do without")
    model = builder(**given)
    if not isinstance(model, nn.Module):
        raise UserError(
            f"model._target_={target}: gave {type(model).__name__}, a torch.nn.Module is needed"
        )
    return model
