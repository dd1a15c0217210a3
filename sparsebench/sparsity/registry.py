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
    "signwise": _HERE + "signs.signwise",
    "aligned": _HERE + "signs.aligned",
}
SCORES |= {
    name: _HERE + "cannistraci." + name
    for name in (
        "ch3_l3", "ch2_l3", "ch3_l3n", "ch2_l3n", "ch3_l3_soft", "ch3_l3n_soft",
        "relative_importance", "magnitude_soft",
    )
}  # fmt: skip
SCORES["hebbian"] = _HERE + "hebbian.hebbian"
SCORES |= {name: _HERE + "saliency." + name for name in ("grasp", "grasp_abs", "synflow")}
SCORES["movement"] = _HERE + "methods.movement.movement"
SCORES |= {"still": _HERE + "still.still", "mest": _HERE + "methods.mest.importance"}
SCORES["accumulated"] = _HERE + "accumulated.accumulated"
#: How new connections are found: any score (the highest are grown), or a sampler.
GROWERS = {**SCORES, "unexplored": _HERE + "scores.unexplored"}
INITIAL = {"dense": "", **SCORES}
INITIAL["phew"] = _HERE + "methods.phew.phew"
INITIAL["small_world"] = _HERE + "cannistraci.small_world"
INITIAL["group_to_group"] = _HERE + "methods.g2gnet.group_to_group"
#: What new connections start from: ``values(layer, positions) -> tensor``.
GROWN = {
    "zero": "",
    **{
        name: _HERE + "grown." + name
        for name in ("initial", "normal", "uniform", "gradient", "gradient_sign")
    },
}
DISTRIBUTIONS = {
    name: _HERE + "distributions." + name
    for name in (
        "uniform", "strict_uniform", "uniform_plus", "er", "erk", "erk_plus", "balanced",
    )
}  # fmt: skip
#: What scores look at beyond the weights, and who gathers it.
OBSERVERS = {
    "gradient": _HERE + "observers.Gradient",
    "momentum": _HERE + "observers.Momentum",
    "explored": _HERE + "observers.Explored",
    "initial": _HERE + "grown.Initial",
    "sign": _HERE + "methods.deepr.Sign",
    "change": _HERE + "still.Change",
    "weighted_gradient": _HERE + "methods.mest.WeightedGradient",
    "hessian_gradient": _HERE + "saliency.HessianGradient",
    "flow": _HERE + "saliency.Flow",
    "movement": _HERE + "methods.movement.Movement",
    "temperature": _HERE + "cannistraci.Temperature",
    "correlation": _HERE + "hebbian.Correlation",
}
OBSERVERS["accumulated"] = _HERE + "accumulated.Accumulated"
#: Methods that are more than a combination of parts: classes built on ``Composed``.
ENGINES = {"composed": _HERE + "composed.Composed"}
ENGINES |= {
    "deepr": _HERE + "methods.deepr.DeepR",
    "dsr": _HERE + "methods.dsr.DSR",
    "topkast": _HERE + "methods.topkast.TopKast",
}
ENGINES |= {"mest": _HERE + "methods.mest.Mest", "soup": _HERE + "methods.soup.Soup"}
ENGINES |= {
    "srigl": _HERE + "methods.srigl.SRigL",
    "chase": _HERE + "methods.chase.Chase",
    "group_channels": _HERE + "methods.group_channels.GroupChannels",
}
ENGINES |= {
    "mask_decay": _HERE + "methods.pgf.MaskDecay",
    "structure_decay": _HERE + "methods.pgf.StructureDecay",
    "bdwp": _HERE + "methods.bdwp.Bdwp",
}
ENGINES["g2gnet"] = _HERE + "methods.g2gnet.G2GNet"
ENGINES["random_search"] = _HERE + "methods.random_search.RandomSearch"
ENGINES |= {
    "movement": _HERE + "methods.movement.HardMovement",
    "movement_soft": _HERE + "methods.movement.SoftMovement",
    "str": _HERE + "methods.str_.LearnedThresholds",
    "acdc": _HERE + "methods.acdc.Phases",
}
STRUCTURES = {
    "unstructured": _HERE + "structure.Unstructured",
    "block": _HERE + "blocks.Block",
    "fan_in": _HERE + "blocks.FanIn",
    "channel": _HERE + "blocks.Channel",
    "nm": _HERE + "nm.NM",
}
SPARSITY_SCHEDULES = {
    name: _HERE + "schedules." + name
    for name in (
        "constant",
        "cubic",
        "linear",
        "geometric",
        "once",
        "alternating",
    )
}
DROP_SCHEDULES = {
    "cosine": _HERE + "schedules.cosine_decay",
    "constant": _HERE + "schedules.constant_decay",
    "linear": _HERE + "schedules.linear_decay",
    "staged": _HERE + "schedules.staged_decay",
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
