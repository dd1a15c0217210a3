"""From a method's specification to the object that runs it."""

from __future__ import annotations

from sparsebench.sparsity import registry
from sparsebench.sparsity.composed import Composed
from sparsebench.sparsity.spec import DistributionSpec, MethodSpec, StructureSpec


def build(
    spec: MethodSpec,
    sparsity: float,
    distribution: DistributionSpec | None = None,
    structure: StructureSpec | None = None,
) -> Composed:
    """The method: composed of its parts, or of the class that ``engine`` names.

    Args:
        spec: the parts by name.
        sparsity: final share of zeros over the selected weights, in [0, 1).
        distribution: how much each layer keeps.
        structure: which patterns of zeros are allowed.

    Raises:
        UserError: a part or an option that does not exist.
    """
    engine = registry.find(spec.engine, registry.ENGINES, "method.engine")
    method: Composed = engine(spec, sparsity, distribution, structure)
    return method
