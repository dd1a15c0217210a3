"""Which kind of sparsity a method is: what a fair comparison must know (Ten Lessons, 2302.02596).

Methods may only be compared as equals within one kind, so each table prints it.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsebench.sparsity.composed import Composed
from sparsebench.sparsity.method import Method
from sparsebench.sparsity.scores import needs_of
from sparsebench.sparsity.spec import StructureSpec
from sparsebench.sparsity.window import by_phases

#: Observers without a gradient at the first step.
FREE = frozenset(
    {"explored", "initial", "sign", "change", "temperature", "correlation", "flow", "signal"}
)


@dataclass(frozen=True)
class Kind:
    """A method's place among the kinds of sparsity, in words.

    Attributes:
        when: weights are removed ``before``, ``during`` or ``after`` training, or ``never``.
        start: training starts from a ``dense`` network, a ``sparse`` one, or holds dense weights
            behind a sparse network (``dense weights kept``).
        masks: ``static``, ``only pruned``, or ``dynamic`` (absent weights may come back).
        pattern: what zeros look like, such as ``unstructured`` or ``2:4``.
        dense_gradient: how often the gradient of absent weights is computed: ``never``, ``once``
            (before training), ``at updates`` or ``each step``.
    """

    when: str
    start: str
    masks: str
    pattern: str
    dense_gradient: str


def kind_of(method: Method) -> Kind:
    """The kind of a method, read off its parts; a class may say what is otherwise of it.

    Args:
        method: any method; of a class of somebody's own only what its ``kind`` says is known.
    """
    said = dict(getattr(method, "kind", {}))
    if not isinstance(method, Composed):
        names = Kind.__dataclass_fields__
        return Kind(**{name: str(said.get(name, "not said")) for name in names})
    return Kind(**{**_derived(method), **said})


def _derived(method: Composed) -> dict[str, str]:
    spec = method.spec
    if not spec.sparse or spec.shrink:
        size = "narrower" if spec.shrink else "none"
        return {
            "when": "never", "start": "dense", "masks": "none", "pattern": size,
            "dense_gradient": "each step",
        }  # fmt: skip
    lives = spec.storage != "zeroed"
    grows = lives or spec.drop is not None or by_phases(spec)
    moves = grows or spec.sparsity_schedule != "constant"
    return {
        "when": _when(method, moves),
        "start": _start(method, lives),
        "masks": "dynamic" if grows else "only pruned" if moves else "static",
        "pattern": _pattern(method.pattern),
        "dense_gradient": _dense_gradient(method, lives),
    }


def _when(method: Composed, moves: bool) -> str:
    if not moves:
        return "before"
    spec = method.spec
    return "after" if spec.sparsity_schedule == "once" or spec.rewind != "none" else "during"


def _start(method: Composed, lives: bool) -> str:
    spec = method.spec
    if lives:
        return "dense weights kept"
    dense = spec.sparsity_schedule != "constant" and spec.initial_sparsity == 0.0
    return "dense" if dense else "sparse"


def _pattern(structure: StructureSpec) -> str:
    if structure.name == "nm" and structure.n and structure.m:
        return f"{structure.n}:{structure.m}"
    block = getattr(structure, "block", None)
    if structure.name == "block" and block:
        return f"blocks of {' x '.join(map(str, block))}"
    name: str = getattr(structure.name, "__name__", structure.name)  # or a class of one's own
    return {"fan_in": "constant fan-in"}.get(name, name.replace("_", " "))


def _dense_gradient(method: Composed, lives: bool) -> str:
    when = {method.observers[name].dense_gradient for name in method.needs}
    if "always" in when or method.spec.storage == "shadow":
        return "each step"
    if "update" in when:
        return "at updates"
    return "once" if needs_of(method.first) - FREE else "never"
