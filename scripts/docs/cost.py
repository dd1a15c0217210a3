"""What a method costs: FLOPs by the package's own accounting, and seconds where measured."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from verdicts import ROOT

from sparsebench import library
from sparsebench.models.cifar_resnet import resnet20
from sparsebench.sparsity.composed import Composed
from sparsebench.sparsity.cost import training_cost
from sparsebench.sparsity.flops import LayerFlops, layer_flops
from sparsebench.sparsity.forecast import forecast
from sparsebench.sparsity.scores import needs_of
from sparsebench.sparsity.selector import select

#: ResNet-20 on the images of CIFAR-10: 50 epochs of 45,000 images in batches of 128.
SETTING = "ResNet-20 on CIFAR-10, 50 epochs"
_SHAPE, _EPOCHS, _PER_EPOCH, _BATCH, _LEAST = (3, 32, 32), 50, 351, 128, 50
_STORED = {
    "zeroed": "An absent weight is zero, and so is what the optimizer remembers of it.",
    "frozen": "An absent weight keeps the value it had and rests; it may come back with it.",
    "shadow": "Absent weights go on learning behind the sparse network: weights, gradients and "
    "optimizer state stay dense in training.",
}
_COMPETE = (
    " Layers compete, so the share of each is known in a run only; counted with those of "
    "the distribution."
)
_GRADIENT = {
    "never": "The gradient of absent weights is never computed.",
    "once": "The gradient of all weights is computed before training only.",
    "at updates": "The gradient of all weights is computed at updates only.",
    "each step": "The gradient of all weights is computed in each step.",
}


@dataclass(frozen=True)
class Cost:
    """Shares of dense training and of dense inference, and the sparsity they are for."""

    training: float
    inference: float
    sparsity: float


@cache
def _network() -> tuple[LayerFlops, dict[str, torch.Size]]:
    with torch.device("meta"):
        model = resnet20(_SHAPE, 10)
    weights = select(model)
    return layer_flops(model, _SHAPE, names=weights), {n: w.shape for n, w in weights.items()}


@cache
def cost(name: str) -> Cost | None:
    """FLOPs of a method at its usual sparsity (90 %, or its pattern's); None if it narrows."""
    spec = library.method(name).spec
    if spec.shrink:
        return None
    often = spec.every.endswith("it") and int(spec.every[:-2]) < _LEAST
    method = library.method(name, **({"every": f"{_LEAST}it"} if often else {}))
    flops, shapes = _network()
    sizes = {n: shape.numel() for n, shape in shapes.items()}
    stretches = list(forecast(method, shapes, _EPOCHS * _PER_EPOCH, _PER_EPOCH))
    last = stretches[-1].nonzeros
    return Cost(
        training_cost(stretches, flops, sizes, flops.total, _BATCH).relative,
        flops.forward({n: last[n] / sizes[n] for n in last}) / flops.total,
        1.0 - sum(last.values()) / sum(sizes.values()),
    )


def section(name: str, method: Composed, dense_gradient: str) -> str:
    """The cost of a method, as Markdown."""
    found, lines = cost(name), []
    if found:
        lines.append(
            f"Counted for {SETTING}, at {found.sparsity:.0%} sparsity: **{found.training:.2f}** of "
            f"the FLOPs of dense training, **{found.inference:.2f}** of dense inference."
            + (_COMPETE if _competes(method) else "")
        )
    else:
        lines.append("Training and inference are those of the narrower network.")
    if ratio := measured().get(name):
        lines.append(f"Measured: a step takes {ratio} of a dense one (`make bench`).")
    lines.append(_GRADIENT.get(dense_gradient, ""))
    if method.sparsity > 0.0:
        lines.append(_STORED[method.storage])
    if beside := looks_at_data(method):
        lines.append(
            f"It looks at training batches beside those it trains on ({beside}): in a loop of "
            "your own give `examples=`."
        )
    return "\n".join(f"- {line}" for line in lines if line) + "\n"


def _competes(method: Composed) -> bool:
    spec = method.spec
    free = spec.scope == "global" and spec.sparsity_schedule != "constant"
    scopes = (spec.initial_scope, spec.drop_scope, spec.grow_scope)
    return bool(free or spec.redistribute or "global" in scopes)


@cache
def measured() -> dict[str, str]:
    """Seconds of a step over those of a dense one, by method, from ``results/bench``."""
    path = ROOT / "results" / "bench" / "methods.json"
    ratios = json.loads(path.read_text()) if path.exists() else []
    return {
        ratio["name"].partition(" / ")[0]: f"{ratio['ratio']:.2f} times the time"
        for ratio in ratios
    }


def looks_at_data(method: Composed) -> str:
    """Who looks at batches, and when; empty if nobody does.

    Read off the source: ``state.data`` is the one way to batches. The gradient of an update is
    that of the training step itself.
    """
    first = needs_of(method.first)
    found = []
    if type(method) is not Composed and _asks(inspect.getmodule(type(method))):
        found.append(f"`{method.spec.engine}`")
    for name, observer in method.observers.items():
        if name in first and _asks(type(observer)):
            found.append(f"`{name}`, before the first step")
        elif name in method.needs and observer.dense_gradient == "never" and _asks(type(observer)):
            found.append(f"`{name}`, at updates")
    return "; ".join(found)


def _asks(what: Any) -> bool:
    return "state.data." in inspect.getsource(what)
