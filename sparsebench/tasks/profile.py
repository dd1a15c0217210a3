"""Accounting without training: FLOPs, sizes and counts by layer; no data is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from sparsebench.data.stratify import amount
from sparsebench.errors import UserError, bad_value
from sparsebench.sparsity.composed import Composed
from sparsebench.sparsity.cost import training_cost
from sparsebench.sparsity.flops import LayerFlops, layer_flops, model_size_bytes
from sparsebench.sparsity.forecast import Stretch, forecast
from sparsebench.sparsity.selector import select
from sparsebench.sparsity.spec import SelectorSpec
from sparsebench.sparsity.time import Duration
from sparsebench.sparsity.training_flops import rigl_closed_form
from sparsebench.tasks.build import build_method, container, network


@dataclass
class Prepared:
    """What is profiled: a model without memory for its weights, and a method."""

    model: nn.Module
    method: Composed
    flops: LayerFlops
    dense_forward: float
    stretches: list[Stretch]
    interval: int


def prepare(cfg: DictConfig) -> Prepared:
    """Build the model on the meta device and lay out the schedule."""
    data = cfg.data
    for key in ("num_classes", "input_shape", "train_size"):
        if not data[key]:
            raise bad_value(f"data.{key}", data[key], f"task=profile needs it for '{data.name}'")
    with torch.device("meta"):
        model, dense_forward = network(cfg, tuple(data.input_shape), data.num_classes)
    weights = select(model, SelectorSpec(**container(cfg.selector)))
    flops = layer_flops(model, tuple(data.input_shape), names=weights)
    method = build_method(cfg)
    if not isinstance(method, Composed):
        raise UserError(
            f"method={cfg.method.name}: task=profile knows the cost of composed methods only"
        )
    per_epoch = _images(cfg) // cfg.batch_size
    if per_epoch == 0:
        allowed = f"there are {_images(cfg)} images to train on"
        raise bad_value("batch_size", cfg.batch_size, allowed)
    total = per_epoch * cfg.epochs
    shapes = {name: parameter.shape for name, parameter in weights.items()}
    return Prepared(
        model,
        method,
        flops,
        dense_forward or flops.total,
        list(forecast(method, shapes, total, per_epoch)),
        Duration.parse(cfg.method.every, "method.every").steps(total, per_epoch),
    )


def run(cfg: DictConfig, folder: Path, prepared: Prepared) -> dict[str, Any]:
    """Count, and give what goes into ``result.json``."""
    flops, last = prepared.flops, prepared.stretches[-1].nonzeros
    parameters = dict(prepared.model.named_parameters())
    sizes = {name: parameters[name].numel() for name in last}
    training = training_cost(
        prepared.stretches, flops, sizes, prepared.dense_forward, cfg.batch_size
    )
    forward = flops.forward(_densities(prepared.stretches[-1], sizes))
    everything = sum(p.numel() for p in prepared.model.parameters())
    weights, nonzeros = sum(sizes.values()), sum(last.values())
    metrics = {
        "parameters": everything,
        "weights": weights,
        "nonzeros": nonzeros,
        "sparsity": 1.0 - nonzeros / weights,
        "sparsity_all": (weights - nonzeros) / everything,
        "flops/inference": forward,
        "flops/inference_dense": prepared.dense_forward,
        "flops/inference_relative": forward / prepared.dense_forward,
        "flops/training": training.total,
        "flops/training_relative": training.relative,
        "flops/dense_gradient_steps": sum(s.dense_gradient_steps for s in prepared.stretches),
        "size/bytes": model_size_bytes(sizes, last, dense_values=everything - weights),
        "size/bytes_folded": model_size_bytes(sizes, last, dense_values=_outputs(parameters, last)),
        "steps": sum(s.steps for s in prepared.stretches),
    }
    paper = training.total  # RigL's closed form is for the methods it is about
    if "gradient" in prepared.method.needs and prepared.method.sparsity:
        sample = rigl_closed_form(forward, prepared.dense_forward, prepared.interval)
        paper = sample * metrics["steps"] * cfg.batch_size
        metrics["flops/training_relative_paper"] = sample / (3 * prepared.dense_forward)
    metrics["flops/training_paper"] = paper
    layers = {
        name: {
            "order": order,
            "shape": list(parameters[name].shape),
            "weights": sizes[name],
            "nonzeros": last[name],
            "sparsity": 1.0 - last[name] / sizes[name],
            "flops_dense": flops.dense[name],
            "flops": flops.dense[name] * last[name] / sizes[name],
        }
        for order, name in enumerate(last)
    }
    return {"metrics": metrics, "layers": layers, "notes": _notes(prepared.method)}


def _outputs(parameters: dict[str, nn.Parameter], names: Iterable[str]) -> int:
    """One bias for each output of the layers: what is left of normalisation once it is folded."""
    return sum(parameters[name].shape[0] for name in names)


def _images(cfg: DictConfig) -> int:
    """Images to train on, as the loader would cut the set."""
    data, images = cfg.data, int(cfg.data.train_size)
    if data.subset is not None:
        images = amount("data.subset", data.subset, images)
    return images - amount("data.validation", data.validation, images)


def _densities(stretch: Stretch, sizes: dict[str, int]) -> dict[str, float]:
    return {name: count / sizes[name] for name, count in stretch.nonzeros.items()}


def _notes(method: Composed) -> list[str]:
    spec = method.spec
    free = spec.scope == "global" and spec.sparsity_schedule != "constant"
    if not (free or spec.redistribute or "global" in (spec.drop_scope, spec.grow_scope)):
        return []
    return [
        "layers compete, so the share of each is known only after training; counted with "
        f"distribution '{method.distribution.name}'"
    ]
