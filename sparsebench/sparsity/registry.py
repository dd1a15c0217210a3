"""Names of all parts, and where each lives; imports nothing, so names can be listed at once.

To add a part, write a function in the module named and give it a line here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from sparsebench.errors import bad_value

_HERE = "sparsebench.sparsity."


def _in(module: str, *names: str, **others: str) -> dict[str, str]:
    """Parts of a module: those called by their own name, and those by another."""
    own = {name: f"{_HERE}{module}.{name}" for name in names}
    return own | {name: f"{_HERE}{module}.{attribute}" for name, attribute in others.items()}


#: What is worth keeping: ``score(layer) -> tensor``, higher is better.
SCORES = {
    **_in("scores", "magnitude", "gradient", "saliency", "momentum", "random"),
    **_in("saliency", "grasp", "grasp_abs", "synflow"),
    **_in("signs", "signwise", "aligned"),
    **_in("still", "still"),
    **_in("accumulated", "accumulated"),
    **_in("sensors", "influence", "signal"),
    **_in("hebbian", "hebbian"),
    **_in("cannistraci", "ch3_l3", "ch2_l3", "ch3_l3n", "ch2_l3n", "ch3_l3_soft", "ch3_l3n_soft"),
    **_in("cannistraci", "relative_importance", "magnitude_soft"),
    **_in("methods.movement", "movement"),
    **_in("methods.mest", mest="importance"),
    **_in("methods.sparcl", "cwi"),
    **_in("methods.winning", "popup"),
}
#: How new connections are found: any score (the highest are grown), or a sampler.
GROWERS = {**SCORES, **_in("scores", "unexplored")}
#: The masks of the first step: by a score, or laid out by a placer.
INITIAL = {
    "dense": "",
    **SCORES,
    **_in("methods.phew", "phew"),
    **_in("cannistraci", "small_world"),
    **_in("methods.g2gnet", "group_to_group"),
}
#: What new connections start from: ``values(layer, positions) -> tensor``.
GROWN = {"zero": "", **_in("grown", "initial", "normal", "uniform", "gradient", "gradient_sign")}
DISTRIBUTIONS = _in(
    "distributions",
    "uniform", "strict_uniform", "uniform_plus", "er", "erk", "erk_plus", "balanced",
    "supsup",
)  # fmt: skip
#: What scores look at beyond the weights, and who gathers it.
OBSERVERS = {
    **_in("observers", gradient="Gradient", momentum="Momentum", explored="Explored"),
    **_in("saliency", hessian_gradient="HessianGradient", flow="Flow"),
    **_in("grown", initial="Initial"),
    **_in("still", change="Change"),
    **_in("accumulated", accumulated="Accumulated"),
    **_in("sensors", influence="Influence", signal="Signal"),
    **_in("hebbian", correlation="Correlation"),
    **_in("cannistraci", temperature="Temperature"),
    **_in("methods.deepr", sign="Sign"),
    **_in("methods.movement", movement="Movement"),
    **_in("methods.mest", weighted_gradient="WeightedGradient"),
    **_in("methods.sparcl", sensitivity="Sensitivity"),
    **_in("methods.winning", popup="Popup"),
}
#: Methods that are more than a combination of parts: classes built on ``Composed``.
ENGINES = {
    **_in("composed", composed="Composed"),
    **_in("methods.random_search", random_search="RandomSearch"),
    **_in("methods.soup", soup="Soup"),
    **_in("methods.movement", movement="HardMovement", movement_soft="SoftMovement"),
    **_in("methods.str_", str="LearnedThresholds"),
    **_in("methods.acdc", acdc="Phases"),
    **_in("methods.deepr", deepr="DeepR"),
    **_in("methods.dsr", dsr="DSR"),
    **_in("methods.topkast", topkast="TopKast"),
    **_in("methods.mest", mest="Mest"),
    **_in("methods.sparcl", sparcl="SparCL"),
    **_in("methods.g2gnet", g2gnet="G2GNet"),
    **_in("methods.srigl", srigl="SRigL"),
    **_in("methods.chase", chase="Chase"),
    **_in("methods.group_channels", group_channels="GroupChannels"),
    **_in("methods.pgf", mask_decay="MaskDecay", structure_decay="StructureDecay"),
    **_in("methods.bdwp", bdwp="Bdwp"),
    **_in("methods.isolated", isolated="Isolated"),
    **_in("methods.packnet", packnet="PackNet"),
    **_in("methods.adaptive", adaptive="Adaptive"),
    **_in("methods.spacenet", spacenet="SpaceNet"),
    **_in("methods.nispa", nispa="Nispa"),
    **_in("methods.winning", winning="Winning"),
}
#: Which patterns of zeros are allowed.
STRUCTURES = {
    **_in("structure", unstructured="Unstructured"),
    **_in("blocks", block="Block", fan_in="FanIn", channel="Channel"),
    **_in("nm", nm="NM"),
}
SPARSITY_SCHEDULES = _in(
    "schedules", "constant", "cubic", "linear", "geometric", "once", "alternating"
)
DROP_SCHEDULES = _in(
    "schedules",
    cosine="cosine_decay", constant="constant_decay", linear="linear_decay", staged="staged_decay",
)  # fmt: skip
SHARES = _in("scores", momentum="momentum_share", survivors="survivor_share")


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
