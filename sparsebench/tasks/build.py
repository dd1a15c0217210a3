"""From config groups to the objects of a run."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from sparsebench import models
from sparsebench.config.importing import resolve
from sparsebench.errors import UserError
from sparsebench.models import ift
from sparsebench.sparsity.build import build
from sparsebench.sparsity.flops import LayerFlops, layer_flops
from sparsebench.sparsity.method import Method
from sparsebench.sparsity.selector import select
from sparsebench.sparsity.spec import DistributionSpec, MethodSpec, SelectorSpec, StructureSpec

#: Dials of a method that name a part of it; each may be the import path of one's own.
PARTS = (
    "engine", "initial", "prune", "also", "drop", "grow", "redistribute",
    "sparsity_schedule", "drop_schedule",
)  # fmt: skip


@contextmanager
def own_code(key: str, target: object) -> Iterator[None]:
    """Say in one line which key an exception in code of the user's own belongs to, and where.

    Raises:
        UserError: in place of whatever that code raised; what is ours raises as it is.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or str(target).startswith("sparsebench."):
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"
        raise UserError(f"{key}={target}: {said}") from error


def container(node: Any) -> dict[str, Any]:
    """A config node as a plain dictionary."""
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def build_method(cfg: DictConfig) -> Method:
    """The sparsity method of a config: composed of parts, or a class by its import path.

    A class of one's own is called with ``sparsity`` and the other keys of its YAML.
    """
    values = container(cfg.method)
    if target := values.pop("_target_", None):
        built: Any = resolve(target, "method._target_", list(cfg.allow))
        values.pop("name", None)
        with own_code("method._target_", target):
            method: Method = built(sparsity=cfg.sparsity, **values)
        _check_interface(method, target)
        return method
    distribution, structure = container(cfg.distribution), container(cfg.structure)
    for group, options, names in (
        ("method", values, PARTS),
        ("distribution", distribution, ("name",)),
        ("structure", structure, ("name",)),
    ):
        for name in names:
            if "." in str(options.get(name, "")):  # a config of before a dial was there
                options[name] = resolve(options[name], f"{group}.{name}", list(cfg.allow))
    return build(
        MethodSpec(**values),
        cfg.sparsity,
        DistributionSpec(**distribution),
        StructureSpec(**structure),
    )


def _check_interface(method: object, target: str) -> None:
    wanted = [name for name in vars(Method) if not name.startswith("_")]
    if missing := [name for name in (*wanted, "storage") if not hasattr(method, name)]:
        raise UserError(f"method._target_={target}: its objects have no {', '.join(missing)}")


def network(
    cfg: DictConfig,
    input_shape: tuple[int, ...],
    num_classes: int,
    flops: Callable[[nn.Module, tuple[int, ...]], LayerFlops] = layer_flops,
) -> tuple[nn.Module, float | None]:
    """The model, from the run's seed, narrower or transformed where the config says so.

    Args:
        cfg: the whole config.
        input_shape: of one sample.
        num_classes: outputs.
        flops: counts a model on samples of that shape.

    Returns:
        The model, and the forward FLOPs of what it is compared with, if that is another: the
        full-width network of a shrunk baseline, or the one that was transformed (``model.ift``).

    Raises:
        UserError: model, width or transformation do not fit.
    """
    config, selector = container(cfg.model), SelectorSpec(**container(cfg.selector))

    def at(width: float | None) -> nn.Module:
        asked = config
        if width is not None:  # in place of the full width, whichever key has it
            extra = {key: value for key, value in config["args"].items() if key != "width"}
            asked = {**config, "args": extra}
        with own_code("model._target_", cfg.model["_target_"]):
            return models.build(asked, input_shape, num_classes, width=width, allow=list(cfg.allow))

    def weights(model: nn.Module) -> int:
        return sum(p.numel() for p in select(model, selector).values())

    torch.manual_seed(cfg.seed)
    transformation = ift.of(config, cfg.method)
    if not transformation and not cfg.method.get("shrink"):
        return at(None), None
    with torch.device("meta"):
        full = at(None)
    dense = float(flops(full, input_shape).total)
    torch.manual_seed(cfg.seed)
    if transformation:
        width = config["args"].get("width", config["width"])
        return ift.transformed(transformation, at, cfg.sparsity, selector, width), dense
    target = round((1.0 - cfg.sparsity) * weights(full))
    width = models.matched_width(at, target, weights)
    torch.manual_seed(cfg.seed)
    return at(width), dense
