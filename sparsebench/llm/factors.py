"""Weights of a trained language model as products of smaller matrices: one-shot factorisation.

A weight (outputs, inputs) becomes ``codes @ atoms``, (outputs, k) and (k, inputs). A form is a
function of the rows of the weight that gives both; its ``codes`` may be dense (low rank), or have
a fixed number of non-zeros in each row (a dictionary). With ``whiten`` it sees the rows times L,
the inputs' Gram matrix being L L^T: ``||X W^T - X V^T|| = ||(W - V) L||``, so that the smallest
error there is the smallest error of what the layer computes.

Sources: low rank on whitened weights as in SVD-LLM (arXiv 2403.07378); dictionaries and the count
of storage as in CoSpaDi (arXiv 2509.22075): 16 bits a number, and one bit for each place where a
code may have a value. In its words the weight is transposed, atoms are columns of D, codes of S.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparsebench.errors import UserError
from sparsebench.llm import dictionary as learning
from sparsebench.llm.inputs import Inputs
from sparsebench.llm.scores import Weights
from sparsebench.llm.spec import FactorSpec
from sparsebench.sparsity.masks import pack, unpack

#: Bits that a number is counted with, whatever it is stored in.
BITS = 16
Tensors = dict[str, Tensor]


class Product(NamedTuple):
    """A weight as codes (outputs, k) times atoms (k, inputs).

    Attributes:
        each: non-zeros of each row of the codes; None: they are dense.
    """

    codes: Tensor
    atoms: Tensor
    each: int | None = None


Form = Callable[[Tensor, float, FactorSpec], Product]


def svd(rows: Tensor, compression: float, spec: FactorSpec) -> Product:
    """The best product of rank r (Eckart and Young); r is the largest that storage allows.

    Args:
        rows: (outputs, inputs).
        compression: share of the storage that is saved.
        spec: the method's dials.
    """
    outputs, inputs = rows.shape
    rank = math.floor((1.0 - compression) * outputs * inputs / (outputs + inputs))
    left, values, right = torch.linalg.svd(rows, full_matrices=False)
    return Product(left[:, :rank] * values[:rank], right[:rank])


def dictionary(rows: Tensor, compression: float, spec: FactorSpec) -> Product:
    """Of k atoms each row combines s = k / ``rho`` (CoSpaDi, arXiv 2509.22075).

    Args:
        rows: (outputs, inputs).
        compression: share of the storage that is saved.
        spec: the method's dials.
    """
    number, count = sizes((rows.shape[0], rows.shape[1]), compression, spec.rho)
    if count == 0:  # no room
        return Product(rows[:, :0], rows[:0])
    codes, atoms = learning.learn(rows, number, count, spec.iterations, spec.step)
    return Product(codes, atoms, count)


def sizes(shape: tuple[int, int], compression: float, rho: float) -> tuple[int, int]:
    """Numbers k of atoms and s of atoms of a row, whose storage is the share that is left.

    16 k inputs + 16 s outputs + k outputs bits, of 16 outputs inputs. s is the largest with
    k = rho s, rounded down, and k the largest for this s.
    """
    outputs, inputs = shape
    bits = (1.0 - compression) * BITS * outputs * inputs
    count = math.floor(bits / (BITS * rho * inputs + BITS * outputs + rho * outputs))
    return math.floor((bits - BITS * count * outputs) / (BITS * inputs + outputs)), count


def factorise(
    layers: Sequence[Weights], compression: float, spec: FactorSpec, form: Form
) -> list[Tensors]:
    """Write the weights of one layer, or of several that share atoms, as products.

    Args:
        layers: of one number of inputs; more than one: their rows are taken together, and the
            Gram matrices of their inputs added.
        compression: share of the storage that is saved.
        spec: the method's dials.
        form: a function such as :func:`svd`.

    Returns:
        For each layer what is stored of it: ``codes``, or ``values`` and ``places``; and for the
        first of them the ``atoms`` of all.

    Raises:
        UserError: so much compression leaves nothing.
    """
    values = torch.cat([layer.values for layer in layers])
    lower = whitening([one.inputs for one in layers], spec.damping, layers[0].name)
    rows = values if lower is None else (values.to(lower.dtype) @ lower).float()
    found = form(rows, compression, spec)
    if found.atoms.shape[0] == 0:
        raise UserError(
            f"method.compression={compression:g}: nothing would be left of '{layers[0].name}' "
            f"({values.shape[0]} x {values.shape[1]})"
        )
    atoms = found.atoms
    if lower is not None:
        atoms = torch.linalg.solve_triangular(
            lower, atoms.to(lower.dtype), upper=False, left=False
        ).float()
    parts = torch.split(found.codes, [len(layer.values) for layer in layers])
    kept = [stored(codes, found.each) for codes in parts]
    kept[0]["atoms"] = atoms
    return kept


def whitening(inputs: Sequence[Inputs], damping: float, name: str = "") -> Tensor | None:
    """Lower Cholesky factor L of the Gram matrix of inputs, a mean over tokens, float64 (C, C).

    Args:
        inputs: measured with ``gram``, and added; without it the answer is None.
        damping: share of the diagonal's mean that is added to the diagonal; tenfold, and said so,
            as long as the matrix is singular.
        name: of the layer, for messages.

    Raises:
        UserError: no damping up to 1 makes it regular.
    """
    grams = [one.gram for one in inputs if one.gram is not None]
    if not grams:
        return None
    tokens = sum(one.tokens for one in inputs)
    gram = torch.stack([one.double() for one in grams]).sum(0) / tokens
    tried, mean = damping, gram.diagonal().mean()
    while True:
        damped = gram.clone()
        damped.diagonal().add_(tried * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            if tried != damping:
                said = f"the Gram matrix of its inputs is singular, damping {tried:g}"
                print(f"sparsebench: {name}: {said}", file=sys.stderr)
            found: Tensor = lower
            return found
        tried = max(10 * tried, 1e-6)
        if tried > 1.0:
            raise UserError(
                f"method.damping={damping:g}: the Gram matrix of '{name}' is singular; more "
                "calibration text (calibration.samples) or more damping is needed"
            )


def stored(codes: Tensor, count: int | None = None) -> Tensors:
    """What is stored of codes (outputs, k).

    Of sparse ones the values (outputs, s), by ascending atom, and their places as packed bits of
    (outputs, k). A code that came out as zero keeps its place.
    """
    if count is None:
        return {"codes": codes.contiguous()}
    places = codes.abs().topk(count, dim=1).indices.sort(dim=1).values
    mask = torch.zeros_like(codes, dtype=torch.bool).scatter_(1, places, True)
    return {"values": codes.gather(1, places), "places": pack(mask)}


def multiply(tensors: Tensors, atoms: Tensor) -> Tensor:
    """The weight (outputs, inputs), float32, from what is stored of its codes, and its atoms."""
    codes = tensors.get("codes")
    if codes is None:
        values = tensors["values"]
        shape = torch.Size((len(values), len(atoms)))
        codes = values.new_zeros(shape)
        codes[unpack(tensors["places"], shape)] = values.reshape(-1)
    return codes.float() @ atoms.float()


def storage(tensors: Tensors) -> dict[str, int]:
    """Bytes by part, at 16 bits a number; ``places`` are bits already."""
    return {
        part: tensor.numel() if part == "places" else tensor.numel() * BITS // 8
        for part, tensor in tensors.items()
    }
