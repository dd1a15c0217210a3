"""Scores: which weights of a linear layer are worth keeping, higher is better.

A score is a function of a :class:`Weights` that returns a tensor of its shape, (outputs, inputs).
``@needs(...)`` declares what must be measured of the layer's input: names of
:data:`sparsebench.llm.inputs.MEASURES`. A new one needs a line in ``spec.SCORES``, or is named in
a YAML by its import path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsebench.llm.inputs import Inputs
from sparsebench.sparsity.scores import needs


@dataclass(frozen=True)
class Weights:
    """What a part of a method may look at.

    Attributes:
        name: of the weight among the model's parameters.
        values: float32 (outputs, inputs).
        inputs: what was measured of the layer's input.
        spec: the method's dials.
        generator: the run's source of randomness.
    """

    name: str
    values: Tensor
    inputs: Inputs
    spec: Any
    generator: torch.Generator


Score = Callable[[Weights], Tensor]


def magnitude(weights: Weights) -> Tensor:
    """Absolute value."""
    return weights.values.abs()


def random(weights: Weights) -> Tensor:
    """A random number for each weight: the floor that any score should be above."""
    shape = weights.values.shape
    return torch.rand(shape, generator=weights.generator).to(weights.values.device)


@needs("squares")
def wanda(weights: Weights) -> Tensor:
    """|W_ij| ||X_j||, X_j being input j over all tokens (Wanda, arXiv 2306.11695)."""
    return weights.values.abs() * weights.inputs.norms


@needs("squares")
def ria(weights: Weights) -> Tensor:
    """Relative importance x ||X_j||^(1/2) (RIA, Zhang 2024, "Plug-and-Play").

    (|W_ij| / sum of |row i| + |W_ij| / sum of |column j|) ||X_j||^0.5.
    """
    size = weights.values.abs()
    least = torch.finfo(size.dtype).tiny
    rows = size.sum(1, keepdim=True).clamp_(min=least)
    columns = size.sum(0, keepdim=True).clamp_(min=least)
    return (size / rows + size / columns) * weights.inputs.norms.sqrt()


@needs("gram")
def obs(weights: Weights) -> Tensor:
    """W_ij^2 / U_jj^2, U being the upper Cholesky factor of the inverse Hessian.

    What removing the weight costs once the columns before it are settled (SparseGPT,
    arXiv 2301.00774); it chooses within the columns' blocks as they are updated there, or all at
    once as DSnoT starts from it.
    """
    factor = weights.inputs.factor(weights.spec.damping, weights.name)
    return (weights.values / factor.diagonal()).square()
