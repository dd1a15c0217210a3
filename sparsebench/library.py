"""Every method of ``configs/method`` as a function: ``rigl(sparsity=0.9, drop_fraction=0.5)``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import yaml

from sparsebench.config.paths import config_files, config_folder, methods
from sparsebench.config.words import option
from sparsebench.errors import bad_value

if TYPE_CHECKING:
    from sparsebench.sparsity.composed import Composed
    from sparsebench.sparsity.method import Method


def method(name: str, **dials: Any) -> Composed:
    """Build a method by its name.

    Args:
        name: file name in ``configs/method``, such as ``rigl``.
        **dials: ``sparsity`` (default 0.9, or what an N:M structure says), ``distribution`` and
            ``structure`` (a name or a dict), and any dial of the method, such as
            ``drop_fraction=0.5``.

    Raises:
        UserError: a name, dial or value that does not exist.
    """
    from sparsebench.sparsity.build import build
    from sparsebench.sparsity.fields import check_fields
    from sparsebench.sparsity.nm_rules import usual_sparsity
    from sparsebench.sparsity.spec import DistributionSpec, MethodSpec

    names = methods()
    if name in methods("pruner") + methods("factoriser"):
        raise bad_value("method", name, "prunes a trained language model, with task=prune_llm")
    if name not in names:
        raise bad_value("method", name, f"one of {', '.join(names)}", names)
    values = yaml.safe_load((config_folder() / "method" / f"{name}.yaml").read_text())
    chosen = _choices(values.pop("defaults", []))
    distribution = _spec(DistributionSpec, dials.pop("distribution", chosen.get("distribution")))
    structure = _structure(dials.pop("structure", chosen.get("structure")))
    sparsity = dials.pop("sparsity", usual_sparsity(structure))
    known = [f.name for f in fields(MethodSpec)]
    for dial in dials:
        if dial not in known:
            raise bad_value(f"method.{dial}", dials[dial], "no such dial", known)
    if options := dials.pop("options", None):
        values["options"] = {**values.get("options", {}), **options}
    spec = MethodSpec(**{**values, **dials})
    for key, part in (("method", spec), ("distribution", distribution), ("structure", structure)):
        check_fields(part, key)
    check_fields_sparsity(sparsity)
    return build(spec, sparsity, distribution, structure)


def as_method(given: Method | str, sparsity: float | None = None) -> Method:
    """A method object, from itself or from its name."""
    if not isinstance(given, str):
        return given
    return method(given) if sparsity is None else method(given, sparsity=sparsity)


def check_fields_sparsity(sparsity: float) -> None:
    """Refuse a sparsity outside [0, 1)."""
    from sparsebench.sparsity.fields import check_number

    check_number("sparsity", sparsity, "[0, 1)")


def _choices(defaults: Iterable[str | Mapping[str, str]]) -> dict[str, str]:
    """What a defaults list overrides: of ``override /group@package: option`` the two names."""
    overrides = [entry for entry in defaults if isinstance(entry, Mapping)]
    return {
        key.partition("/")[2].partition("@")[0]: option
        for entry in overrides
        for key, option in entry.items()
    }


def _structure(given: str | Mapping[str, Any] | None) -> Any:
    from sparsebench.sparsity.spec import StructureSpec

    if isinstance(given, str):  # a name of configs/structure, with its numbers
        given, names = option(given), config_files("structure")
        if given not in names:
            raise bad_value("structure", given, f"one of {', '.join(names)}", names)
        said = yaml.safe_load((config_folder() / "structure" / f"{given}.yaml").read_text())
        given = said.get("structure", said)  # an N:M file says the sparsity too
    return _spec(StructureSpec, given)


def _spec(kind: type, given: str | Mapping[str, Any] | None) -> Any:
    if isinstance(given, kind):
        return given
    if given is None:
        return kind()
    return kind(name=given) if isinstance(given, str) else kind(**given)


def __getattr__(name: str) -> Callable[..., Composed]:
    if name in methods():
        return lambda **dials: method(name, **dials)
    raise AttributeError(f"no method '{name}' in configs/method")
