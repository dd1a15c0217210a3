"""A method that writes weights as products, as the pipeline of pruning sees it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from sparsebench.config.importing import resolve
from sparsebench.errors import UserError
from sparsebench.llm.factors import BITS, Form, Tensors, factorise, multiply
from sparsebench.llm.layers import Linear
from sparsebench.llm.parts import Parts
from sparsebench.llm.ratios import Question, uniform
from sparsebench.llm.scores import Score, Weights, magnitude
from sparsebench.llm.spec import FORMS, FactorSpec, PrunerSpec
from sparsebench.sparsity.registry import find
from sparsebench.tasks.build import container


@dataclass(frozen=True)
class Factoriser:
    """The functions behind a :class:`~sparsebench.llm.spec.FactorSpec`.

    It stands where :class:`~sparsebench.llm.parts.Parts` do; the share that is given to each
    layer is its compression.
    """

    spec: FactorSpec
    form: Form
    ratios: Callable[[Question], dict[str, float]] = uniform
    score: Score = magnitude

    @classmethod
    def of(cls, spec: FactorSpec, allow: Sequence[str] = ()) -> Factoriser:
        """Find the form by name, or by import path.

        Raises:
            UserError: no such form.
        """
        own = "." in spec.form
        form: Any = resolve(spec.form, "method.form", allow) if own else None
        return cls(spec, form or find(spec.form, FORMS, "method.form"))

    @property
    def measures(self) -> frozenset[str]:
        """What is measured of each layer's inputs."""
        return frozenset({"gram"} if self.spec.whiten else ())

    @property
    def looks_at_text(self) -> bool:
        """Whether calibration text decides anything."""
        return self.spec.whiten

    @property
    def group(self) -> int:
        """Blocks that are settled together."""
        return self.spec.group

    @property
    def kind(self) -> dict[str, str]:
        """After training, once, from a dense network."""
        return {
            "when": "after",
            "start": "dense",
            "masks": "none",
            "pattern": "product of two matrices",
            "dense_gradient": "never",
        }

    def settle(
        self,
        layers: Sequence[tuple[Linear, Weights]],
        compression: float,
        nm: tuple[int, int] | None = None,
        chosen: Tensor | None = None,
    ) -> list[Tensors]:
        """Put products in the place of some layers' weights, which share their atoms.

        Args:
            layers: and what was measured of their inputs.
            compression: share of the storage that is saved.
            nm: no pattern here.
            chosen: no mask here.

        Returns:
            What is stored of each, in the model's own precision.
        """
        linears = [linear for linear, _ in layers]
        found = factorise([weights for _, weights in layers], compression, self.spec, self.form)
        dtype = linears[0].weight.dtype
        tensors = [
            {part: t.to(dtype) if t.is_floating_point() else t for part, t in kept.items()}
            for kept in found
        ]
        self.restore(linears, tensors)
        return tensors

    def restore(self, linears: Sequence[Linear], tensors: Sequence[Tensors]) -> None:
        """Multiply out what is stored of some layers, in their place."""
        device = linears[0].weight.device
        atoms = tensors[0]["atoms"].to(device)
        with torch.no_grad():
            for linear, kept in zip(linears, tensors, strict=True):
                codes = {part: t.to(device) for part, t in kept.items()}
                linear.weight.copy_(multiply(codes, atoms))


def method_of(cfg: DictConfig) -> Parts | Factoriser:
    """The method of a config: one that prunes, or one that writes weights as products.

    Raises:
        UserError: a part that does not exist, or there will be no masks to save.
    """
    values, allow = container(cfg.method), list(cfg.allow)
    if OmegaConf.get_type(cfg, "method") is not FactorSpec:
        return Parts.of(PrunerSpec(**values), allow)
    if cfg.recovery.name != "none":
        raise UserError(
            f"recovery={cfg.recovery.name}: trains behind masks, and method={cfg.method.name} "
            "leaves none"
        )
    if cfg.save_masks:
        raise UserError(
            f"save_masks=true: method={cfg.method.name} leaves no masks; save_model=true writes "
            "its factors"
        )
    return Factoriser.of(FactorSpec(**values), allow)


def product_counts(
    factors: Mapping[str, Mapping[str, int]], layers: Mapping[str, Any], dense_flops: int
) -> dict[str, Any]:
    """What products take, for ``result.json``.

    Args:
        factors: bytes by part of each layer, at 16 bits a number.
        layers: figures of each layer in order, with its number of ``weights``.
        dense_flops: of a token, before.

    Returns:
        Bytes by part (``storage/atoms``, ``storage/codes``, ...), in all and of the dense weights
        counted alike, the share that is saved, and FLOPs of a token by the factors.
    """
    dense = {name: layers[name]["weights"] * BITS // 8 for name in factors}
    parts: dict[str, int] = {}
    for sizes in factors.values():
        for part, size in sizes.items():
            parts[part] = parts.get(part, 0) + size
    total, numbers = sum(parts.values()), 0
    atoms: dict[str, int] = {}  # of each kind of layer, which those of later blocks may share
    for name in (name for name in layers if name in factors):
        kind, own = re.sub(r"\d+", "", name), factors[name]
        atoms[kind] = own.get("atoms", atoms.get(kind, 0))
        numbers += (atoms[kind] + own.get("codes", 0) + own.get("values", 0)) * 8 // BITS
    return {
        "compression": 1.0 - total / sum(dense.values()),
        "storage": total,
        "storage/dense": sum(dense.values()),
        **{f"storage/{part}": size for part, size in parts.items()},
        "flops/token": dense_flops + 2 * (numbers - sum(dense.values()) * 8 // BITS),
    }
