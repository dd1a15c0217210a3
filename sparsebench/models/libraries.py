"""Any model of timm or torchvision, by its name there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from sparsebench.errors import UserError, bad_value
from sparsebench.models.checkpoint import fit, load_weights
from sparsebench.models.common import image_shape
from sparsebench.models.probe import first_line, refusal


def timm_model(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    name: str,
    pretrained: bool = False,
    checkpoint: str | None = None,
    width: float = 1.0,
    args: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A model of timm.

    Models for one image size are built for the data's, where timm can do that.

    Args:
        input_shape: (channels, height, width); timm adapts the first layer to the channels.
        num_classes: outputs.
        name: timm's name, with or without the tag of its weights.
        pretrained: start from timm's weights; the classifier is new where classes differ.
        checkpoint: local file to load; with ``pretrained`` it takes the download's place, and
            its classifier may be for other classes.
        width: must be 1, timm's models have none.
        args: further arguments of ``timm.create_model``.

    Returns:
        The model.

    Raises:
        UserError: no such model or argument, or it does not take the data's input, or the
            weights cannot be had or do not fit.
    """
    import timm

    made_for, fixed_size = _timm_facts(name)
    _no_width(width, name)
    channels, *size = image_shape(input_shape, name)
    arguments = {"in_chans": channels, "num_classes": num_classes, **dict(args or {})}
    attempts = [arguments]
    if "img_size" not in arguments:  # tried first where the model is made for another size only
        first = fixed_size and list(made_for[1:]) != size
        attempts.insert(0 if first else 1, {**arguments, "img_size": tuple(size)})
    problem = ""
    for attempt in attempts:
        make = partial(timm.create_model, name, **attempt)
        try:
            reason = refusal(make, input_shape, num_classes)
        except Exception as error:  # timm raises whatever it likes here
            found = _build_problem(name, error)
        else:
            if reason is None:
                return _with_weights(make, name, num_classes, pretrained, checkpoint)
            found = _input_problem(name, input_shape, made_for, reason)
        if attempt is arguments:  # the message is about what was asked, not about our try
            problem = found
    raise UserError(problem)


def _timm_facts(name: str) -> tuple[tuple[int, ...], bool]:
    """The input a model of timm is made for, and whether it takes no other size."""
    import timm
    from timm.models import get_pretrained_cfg

    if not name or not timm.is_model(name):
        raise bad_value("model.name", name, "timm has no such model", timm.list_models())
    try:
        cfg = get_pretrained_cfg(name)
    except RuntimeError:
        tagged = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        raise bad_value("model.name", name, "timm has no such weights", tagged) from None
    return (tuple(cfg.input_size), cfg.fixed_input_size) if cfg else ((), False)


def _with_weights(
    make: Callable[..., nn.Module],
    name: str,
    num_classes: int,
    pretrained: bool,
    checkpoint: str | None,
) -> nn.Module:
    """Build a model of timm with the weights asked for."""
    if checkpoint is not None:
        model = make()
        load_weights(model, checkpoint, num_classes=num_classes, new_head=pretrained)
        return model
    try:
        return make(pretrained=pretrained)
    except Exception as error:  # no network, no room, no weights of this name
        raise _no_download(name, error) from error


def torchvision_model(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    name: str,
    pretrained: bool = False,
    checkpoint: str | None = None,
    width: float = 1.0,
    args: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A classification model of torchvision.

    Args:
        input_shape: (channels, height, width); torchvision's models take 3 channels.
        num_classes: outputs.
        name: torchvision's name.
        pretrained: start from torchvision's default weights; the classifier is new where the
            classes differ.
        checkpoint: as for ``timm_model``.
        width: must be 1, torchvision's models have none under one name.
        args: further arguments of ``torchvision.models.get_model``.

    Returns:
        The model.

    Raises:
        UserError: as for ``timm_model``.
    """
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise bad_value("model.name", name, "torchvision has no such classifier", names)
    _no_width(width, name)
    image_shape(input_shape, name)
    make: Callable[..., nn.Module] = partial(
        torchvision.models.get_model, name, num_classes=num_classes, **dict(args or {})
    )
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        reason = refusal(make, input_shape, num_classes)
    except Exception as error:  # torchvision raises whatever it likes here
        raise UserError(_build_problem(name, error)) from error
    if reason is not None:
        crop = weights.transforms.keywords["crop_size"]
        raise UserError(_input_problem(name, input_shape, (3, crop, crop), reason))
    model = make()
    if checkpoint is not None:
        load_weights(model, checkpoint, num_classes=num_classes, new_head=pretrained)
    elif pretrained:
        try:
            state = weights.get_state_dict(progress=False, check_hash=True)
        except Exception as error:  # no network, no room, a broken download
            raise _no_download(name, error) from error
        where = f"model.pretrained={weights}"
        fit(model, state, where=where, num_classes=num_classes, new_head=True)
    return model


def _no_width(width: float, name: str) -> None:
    if width != 1.0:
        raise bad_value("model.width", str(width), f"{name} has no width to change, leave it at 1")


def _build_problem(name: str, error: Exception) -> str:
    if isinstance(error, TypeError):
        return f"model.args: {name} does not take them ({first_line(error)})"
    return f"model.name={name}: cannot be built ({first_line(error)})"


def _input_problem(
    name: str, input_shape: tuple[int, ...], made_for: tuple[int, ...], reason: str
) -> str:
    usual = f", it is made for {made_for}" if made_for else ""
    return (
        f"model.name={name}: cannot be trained on the data's input {input_shape}{usual} ({reason})"
    )


def _no_download(name: str, error: Exception) -> UserError:
    return UserError(
        f"model.pretrained=True: no weights of {name} ({first_line(error)}); "
        "without a network, name a local file in model.checkpoint"
    )
