"""Which parameters of a model are sparse."""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import UninitializedParameter

from sparsebench.errors import UserError, bad_value
from sparsebench.sparsity.sensors import Sensors
from sparsebench.sparsity.spec import SelectorSpec

KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "linear": (nn.Linear,),
    "conv": (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    "embedding": (nn.Embedding,),
    "sensor": (Sensors,),
}


def select(model: nn.Module, spec: SelectorSpec | None = None) -> dict[str, nn.Parameter]:
    """The sparse parameters by name, in the order of the modules; a tied weight once.

    Biases and norms are never selected.

    Args:
        model: the network.
        spec: kinds of layers, shell patterns of names, first and last layer.

    Returns:
        Parameter name (a key of ``model.state_dict()``) to parameter.

    Raises:
        UserError: nothing matches, or a selected parameter cannot be sparse.
    """
    spec = spec or SelectorSpec()
    candidates = _weights(model, spec)
    names = list(candidates)
    if not spec.first:
        names = names[1:]
    if not spec.last:
        names = names[:-1]
    chosen = {n: candidates[n] for n in names if _matches(n, spec)}
    if not chosen:
        raise UserError(_nothing_matches(model, spec, names))
    for name, parameter in chosen.items():
        _check(name, parameter)
    return chosen


def _weights(model: nn.Module, spec: SelectorSpec) -> dict[str, nn.Parameter]:
    for name in spec.kinds:
        if name not in KINDS:
            raise bad_value("selector.kinds", name, f"any of {', '.join(KINDS)}", KINDS)
    types = tuple(kind for name in spec.kinds for kind in KINDS[name])
    seen: set[int] = set()
    found: dict[str, nn.Parameter] = {}
    for name, module in model.named_modules():
        if isinstance(module, types) and isinstance(module.weight, nn.Parameter):
            if id(module.weight) not in seen:
                found[f"{name}.weight" if name else "weight"] = module.weight
            seen.add(id(module.weight))
    return found


def _matches(name: str, spec: SelectorSpec) -> bool:
    return any(fnmatchcase(name, p) for p in spec.include) and not any(
        fnmatchcase(name, p) for p in spec.exclude
    )


def _nothing_matches(model: nn.Module, spec: SelectorSpec, candidates: list[str]) -> str:
    names = candidates or [n for n, _ in model.named_parameters()]
    wanted = spec.include[0] if spec.include else ""
    near = difflib.get_close_matches(wanted, names, n=5, cutoff=0.0) or names[:5]
    return (
        f"selector: include={list(spec.include)} exclude={list(spec.exclude)} "
        f"kinds={list(spec.kinds)} matches no weight of the model; it has {', '.join(near)}"
    )


def _check(name: str, parameter: nn.Parameter) -> None:
    fault = None
    if isinstance(parameter, UninitializedParameter):
        fault = "has no shape yet: run one batch through the model first"
    elif parameter.is_complex():
        fault = "is complex"
    elif not parameter.is_floating_point() or parameter.is_quantized:
        fault = f"is of type {parameter.dtype}, which cannot be masked"
    elif not parameter.requires_grad:
        fault = "is frozen (requires_grad=False)"
    if fault:
        raise UserError(f"selector: weight '{name}' {fault}; leave it out by selector.exclude")
