"""Names of all parts, and where each lives; imports nothing, so names can be listed at once.

To add a part, write a function in the module named and give it a line here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from sparsebench.errors import bad_value

_HERE = "sparsebench.sparsity."

#: What is worth keeping: ``score(layer) -> tensor``, higher is better.
SCORES = {
    "magnitude": _HERE + "scores.magnitude",
    "gradient": _HERE + "scores.gradient",
    "saliency": _HERE + "scores.saliency",
    "momentum": _HERE + "scores.momentum",
    "random": _HERE + "scores.random",
}
#: How new connections are found: any score (the highest are grown), or a sampler.
GROWERS = {**SCORES, "unexplored": _HERE + "scores.unexplored"}
INITIAL = {"dense": "", **SCORES}
DISTRIBUTIONS = {
    name: _HERE + "distributions." + name
    for name in (
        "uniform", "strict_uniform", "uniform_plus", "er", "erk", "erk_plus", "balanced",
    )
}  # fmt: skip
STRUCTURES = {"unstructured": _HERE + "structure.Unstructured"}
SPARSITY_SCHEDULES = {
    name: _HERE + "schedules." + name
    for name in ("constant", "cubic", "linear", "geometric", "once")
}
DROP_SCHEDULES = {
    "cosine": _HERE + "schedules.cosine_decay",
    "constant": _HERE + "schedules.constant_decay",
    "linear": _HERE + "schedules.linear_decay",
}
SHARES = {"momentum": _HERE + "scores.momentum_share", "survivors": _HERE + "scores.survivor_share"}


def find(part: str | Callable[..., Any], names: Mapping[str, str], key: str) -> Callable[..., Any]:
    """The function a part's name stands for; a function given is passed through.

    Raises:
        UserError: no part of this name.
    """
    if not isinstance(part, str):
        return part
    if part not in names:
        raise bad_value(key, part, f"one of {', '.join(names)}", names)
    module, _, attribute = names[part].rpartition(".")
    found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return found
