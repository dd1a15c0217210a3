"""Train and test an image classifier."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from torch import nn

from sparsebench import data
from sparsebench.data import DataSets
from sparsebench.sparsity.flops import LayerFlops, layer_flops
from sparsebench.sparsity.method import Method
from sparsebench.sparsity.selector import select
from sparsebench.sparsity.spec import SelectorSpec
from sparsebench.tasks.build import build_method, container, network, own_code
from sparsebench.tasks.preflight import check_model, check_run
from sparsebench.training.ranks import check_devices, ranks

if TYPE_CHECKING:
    from sparsebench.training.trainer import Fitted


@dataclass
class Prepared:
    """All that a run needs, built and checked before anything is written."""

    data: DataSets
    model: nn.Module
    method: Method
    selector: SelectorSpec
    flops: LayerFlops
    dense_forward: float
    seconds: float


def prepare(cfg: DictConfig) -> Prepared:
    """Load the data, build model and method, and refuse what can't work.

    Where the config tells the data's shape the model comes before the data, and Lightning comes
    last of all, so that a refusal is quick.
    """
    begin = time.perf_counter()
    check_devices(cfg)
    method = build_method(cfg)
    shape, classes = cfg.data.input_shape, cfg.data.num_classes
    sets = None if shape and classes else _load(cfg)
    like = (sets.input_shape, sets.num_classes) if sets else (tuple(shape), classes)
    model, dense_forward = network(cfg, *like)
    selector = SelectorSpec(**container(cfg.selector))
    weights = select(model, selector)
    check_model(cfg, model, method, weights, like)
    sets = sets or _load(cfg)
    check_run(cfg, sets, model, method)
    flops = layer_flops(model, sets.input_shape, names=weights)
    return Prepared(
        data=sets,
        model=model,
        method=method,
        selector=selector,
        flops=flops,
        dense_forward=dense_forward or flops.total,
        seconds=time.perf_counter() - begin,
    )


def _load(cfg: DictConfig) -> DataSets:
    with own_code("data._target_", cfg.data["_target_"]):
        return data.load(container(cfg.data), allow=list(cfg.allow))


def run(cfg: DictConfig, folder: Path, prepared: Prepared) -> dict[str, Any]:
    """Train, test, and give what goes into ``result.json``."""
    from sparsebench.training.classifier import Classifier
    from sparsebench.training.loggers import Mirror
    from sparsebench.training.measure import Measure
    from sparsebench.training.plots import draw
    from sparsebench.training.sparsify import Sparsify
    from sparsebench.training.trainer import fit

    sets = prepared.data
    module = Classifier(
        prepared.model, cfg, sets.num_classes, len(sets.input_shape), prepared.method
    )
    sparsify = Sparsify(prepared.method, selector=prepared.selector, seed=cfg.seed, module="model")
    measure = Measure(folder, sparsify, prepared.flops, prepared.dense_forward, cfg.batch_size)
    mirror = Mirror(cfg, folder, measure)
    loggers = [mirror] if mirror.wanted else []
    with ranks(cfg, folder):
        fitted = fit(cfg, folder, sets, module, sparsify, measure, loggers)
        found = _test(cfg, prepared, fitted)
    found["notes"] += [*sets.notes, *mirror.notes]
    if cfg.plots and fitted.trainer.is_global_zero:
        draw(folder, measure.rows, measure.densities, folder.name)
    mirror.close(found["metrics"])
    return found


def _test(cfg: DictConfig, prepared: Prepared, fitted: Fitted) -> dict[str, Any]:
    """Test on all ranks, and gather what was measured."""
    from sparsebench.training.outcome import outcome
    from sparsebench.training.trainer import eval_loader

    sets, module = prepared.data, fitted.module
    begin = time.perf_counter()
    fitted.trainer.test(module, eval_loader(cfg, sets.test, fitted.trainer), verbose=False)
    found = outcome(
        fitted, module.take_evaluation(), sum(p.numel() for p in prepared.model.parameters())
    )
    found["metrics"] |= {
        "seconds/testing": time.perf_counter() - begin,
        "seconds/setup": prepared.seconds,
        "seconds/fit": fitted.seconds,
    }
    found["data"] = {"fingerprint": sets.fingerprint, "train": len(sets.train)}
    return found
