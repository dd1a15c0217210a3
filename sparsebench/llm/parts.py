"""A pruning method put together from its parts, and what they do with one layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from sparsebench.config.importing import resolve
from sparsebench.llm.choose import Pattern, undivided
from sparsebench.llm.layers import Linear
from sparsebench.llm.ratios import Question
from sparsebench.llm.scores import Score, Weights
from sparsebench.llm.spec import RATIOS, SCORES, SOLVERS, SWAPS, PrunerSpec
from sparsebench.sparsity.masks import pack, unpack
from sparsebench.sparsity.registry import find
from sparsebench.sparsity.scores import needs_of

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Parts:
    """The functions that a method's names stand for.

    Attributes:
        measures: what must be measured of a layer's inputs; nothing: no text is needed.
        kind: its place among the kinds of sparsity, for tables.
    """

    spec: PrunerSpec
    score: Score
    ratios: Callable[[Question], dict[str, float]]
    swap: Callable[..., Tensor] | None
    solver: Callable[..., tuple[Tensor, Tensor]] | None

    @classmethod
    def of(cls, spec: PrunerSpec, allow: Sequence[str] = ()) -> Parts:
        """Find the parts by name, or by import path.

        Args:
            spec: names and dials.
            allow: packages that may be named beside the built-in ones.

        Raises:
            UserError: no such part.
        """

        def part(dial: str, names: dict[str, str]) -> Any:
            name = str(getattr(spec, dial))
            if "." in name:
                return resolve(name, f"method.{dial}", allow)
            return find(name, names, f"method.{dial}")

        return cls(
            spec=spec,
            score=part("score", SCORES),
            ratios=part("ratios", RATIOS),
            swap=part("swap", SWAPS) if spec.swap else None,
            solver=part("solver", SOLVERS) if spec.solver != "none" else None,
        )

    @property
    def measures(self) -> frozenset[str]:
        """What the parts look at, of each layer's inputs."""
        parts = (self.score, self.swap, self.solver)
        return frozenset().union(*(needs_of(part) for part in parts if part))

    @property
    def looks_at_text(self) -> bool:
        """Whether calibration text decides anything."""
        return bool(self.measures | needs_of(self.ratios))

    @property
    def group(self) -> int:
        """Blocks that are pruned together."""
        return 1

    @property
    def kind(self) -> dict[str, str]:
        """After training, once, from a dense network."""
        return {
            "when": "after",
            "start": "dense",
            "masks": "static",
            "pattern": "unstructured",
            "dense_gradient": "never",
        }

    def prune(self, weights: Weights, pattern: Pattern) -> tuple[Tensor, Tensor]:
        """The new weight of a layer, and the mask of what stays.

        SparseGPT chooses by its own score while it updates; with a swap or another score the mask
        comes first and the update follows it.

        Raises:
            UserError: a pattern does not divide the width.
        """
        width = weights.values.shape[1]
        if pattern.nm and pattern.sparsity and width % pattern.nm[1]:
            raise undivided(weights.name, width, pattern.nm[1])
        if pattern.chosen is not None:
            if self.solver:
                return self.solver(weights, pattern, pattern.chosen)
            return weights.values, pattern.chosen
        swaps = self.swap and not any(
            fnmatchcase(weights.name, glob) for glob in self.spec.swap_skip
        )
        if self.solver and self.spec.score == "obs" and not swaps:
            return self.solver(weights, pattern)
        score = self.score(weights)
        mask = pattern.keep(score)
        if self.swap and swaps:
            mask = self.swap(weights, mask, pattern, score)
        if self.solver:
            return self.solver(weights, pattern, mask)
        return weights.values, mask

    def settle(
        self,
        layers: Sequence[tuple[Linear, Weights]],
        sparsity: float,
        nm: tuple[int, int] | None = None,
        chosen: Tensor | None = None,
    ) -> list[Tensors]:
        """Prune a layer in place.

        Args:
            layers: the one layer, and what parts may look at.
            sparsity: of it.
            nm: N and M of an N:M pattern.
            chosen: the mask, where it is settled already.

        Returns:
            What :meth:`restore` needs to do it again: the packed mask, in the shape that the
            model holds the weight, and the weight where it has changed.
        """
        ((linear, weights),) = layers
        pattern = Pattern(sparsity, self.spec.scope, self.spec.columns, nm, chosen)
        values, mask = self.prune(weights, pattern)
        with torch.no_grad():
            if values is not weights.values:
                linear.weight.copy_(values)
            linear.weight.masked_fill_(~mask, 0.0)
        stored = mask.t() if linear.transposed else mask
        tensors = {"mask": pack(stored.contiguous())}
        if self.solver:
            tensors["weight"] = linear.weight.contiguous()
        return [tensors]

    def restore(self, linears: Sequence[Linear], tensors: Sequence[Tensors]) -> None:
        """Do again what :meth:`settle` did."""
        with torch.no_grad():
            for linear, kept in zip(linears, tensors, strict=True):
                if (weight := kept.get("weight")) is not None:
                    linear.weight.copy_(weight)
                stored = linear.weight.t() if linear.transposed else linear.weight
                mask = unpack(kept["mask"].to(stored.device), stored.shape)
                stored.masked_fill_(~mask, 0.0)
