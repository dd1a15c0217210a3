"""What can be said of an N:M pattern without looking at a network; nothing here imports torch."""

from __future__ import annotations

from sparsebench.errors import UserError
from sparsebench.sparsity.spec import DistributionSpec, MethodSpec, StructureSpec

#: Sparsity where neither the user nor the structure says one.
USUAL = 0.9
_NEAR = 5e-4  # 2:3 may be written as 0.333


def is_nm(structure: StructureSpec) -> bool:
    """Whether a structure keeps N of every M weights."""
    return structure.name == "nm"


def of_pattern(n: int | None, m: int | None) -> float:
    """Share of zeros of a pattern; that of no pattern where a number is missing."""
    return USUAL if n is None or m is None or not 1 <= n <= m else 1.0 - n / m


def usual_sparsity(structure: StructureSpec) -> float:
    """The sparsity where none is given: that of the pattern, if it has one."""
    return of_pattern(structure.n, structure.m) if is_nm(structure) else USUAL


def check_numbers(structure: StructureSpec, sparsity: float) -> None:
    """Refuse numbers that are no pattern, or that are another sparsity's.

    Args:
        structure: a config node or spec of an N:M structure.
        sparsity: share of zeros asked for; at 0 training is dense whatever the pattern.

    Raises:
        UserError: naming the key and what it must be.
    """
    n, m = structure.n, structure.m
    if n is None or m is None:
        raise UserError(
            f"structure={structure.name} structure.n={n} structure.m={m}: both are needed, as in "
            "structure=nm_2_4 or structure=nm structure.n=2 structure.m=4"
        )
    if not 1 <= n <= m:
        raise UserError(f"structure.n={n} structure.m={m}: N must be from 1 to M")
    if sparsity and abs(sparsity - (1.0 - n / m)) > _NEAR:
        raise UserError(
            f"sparsity={sparsity:g}: {n} of every {m} weights stay (structure.n={n} "
            f"structure.m={m}), which is sparsity={1.0 - n / m:g}; leave sparsity out, or choose "
            "another structure, such as nm_1_8"
        )


def check_method(spec: MethodSpec) -> None:
    """Refuse parts of a method that would break the groups.

    Args:
        spec: a config node or spec of the method.

    Raises:
        UserError: naming the dial and the reason.
    """
    for dial in ("scope", "initial_scope", "drop_scope", "grow_scope"):
        if getattr(spec, dial) == "global":
            raise UserError(
                f"method.{dial}=global: with an N:M structure every group of M keeps N, so layers "
                f"can't compete; use method.{dial}=layer"
            )
    reasons = {
        "redistribute": "connections can't move to another layer",
        "also": "it might take more of a group than there is to go",
    }
    for dial, reason in reasons.items():
        if getattr(spec, dial) is not None:
            value = getattr(spec, dial)
            raise UserError(f"method.{dial}={value}: with an N:M structure {reason}")
    if spec.regrow == "never":
        raise UserError(
            "method.regrow=never: with an N:M structure a group must be able to take back what it "
            "lost; use keep or zero"
        )
    if spec.initial_shuffle or spec.ticket in ("random_mask", "shuffled_inputs"):
        dial = "initial_shuffle=true" if spec.initial_shuffle else f"ticket={spec.ticket}"
        raise UserError(f"method.{dial}: shuffled places would break an N:M structure's groups")


def check_distribution(distribution: DistributionSpec) -> None:
    """Refuse a distribution over layers, which nobody would look at.

    Args:
        distribution: a config node or spec; what methods choose by themselves may stand.

    Raises:
        UserError: naming the key.
    """
    usual = DistributionSpec(name="strict_uniform")
    said = [key for key in vars(usual) if key != "name" and _differs(distribution, usual, key)]
    if distribution.name not in ("erk", "uniform", "strict_uniform"):
        said.append("name")
    if said:
        key, value = f"distribution.{said[0]}", getattr(distribution, said[0])
        raise UserError(
            f"{key}={value}: has no effect with an N:M structure, whose groups all keep N of M; "
            "to leave layers dense use selector, such as selector=not_first"
        )


def _differs(distribution: DistributionSpec, usual: DistributionSpec, key: str) -> bool:
    return bool(getattr(distribution, key) != getattr(usual, key))
