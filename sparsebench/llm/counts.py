"""What is left of a pruned model: weights, bytes on disk in sparse formats, FLOPs of a token.

Bytes are of the linear layers' weights at the model's own precision: ``bitmap`` is one bit a weight
and the values that stay; ``csr`` is the values, a 16-bit column number for each (32-bit where a
row is longer than 65,536) and a 32-bit start for each row; ``nm`` is N values of each M and
ceil(log2 M) bits for the place of each, as hardware for N:M reads them. FLOPs are two for each
weight that a token is multiplied by, in the linear layers and the output head; attention scores,
which grow with the text, are not in them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from sparsebench.llm.layers import Block


def counts(
    model: nn.Module,
    blocks: Sequence[Block],
    given: Mapping[str, float],
    nm: tuple[int, int] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Count the model as it is, over its linear layers and over all.

    Args:
        model: pruned.
        blocks: its decoder blocks.
        given: sparsity that each weight was to have.
        nm: N and M, if that is its pattern.

    Returns:
        Metrics, and figures by layer.
    """
    layers: dict[str, Any] = {}
    sizes: dict[str, int] = {}
    for block in blocks:
        with block.loaded():
            for linear in block.linears:
                weight = linear.weight
                nonzeros = int(torch.count_nonzero(weight))
                layers[linear.name] = {
                    "order": len(layers),
                    "shape": list(weight.shape),
                    "weights": weight.numel(),
                    "nonzeros": nonzeros,
                    "sparsity": 1.0 - nonzeros / weight.numel(),
                    "given": given[linear.name],
                }
                rows, columns = weight.shape
                each = sizes_of(rows, columns, nonzeros, weight.element_size(), nm)
                for name, size in each.items():
                    sizes[name] = sizes.get(name, 0) + size
    weights = sum(layer["weights"] for layer in layers.values())
    nonzeros = sum(layer["nonzeros"] for layer in layers.values())
    everything = sum(p.numel() for p in model.parameters())
    head = _head(model)
    metrics = {
        "parameters": everything,
        "weights": weights,
        "nonzeros": nonzeros,
        "sparsity": 1.0 - nonzeros / weights,
        "sparsity_all": (weights - nonzeros) / everything,
        "flops/token": 2 * (nonzeros + head),
        "flops/token_dense": 2 * (weights + head),
        "memory/model_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
    }
    return metrics | {f"bytes/{name}": size for name, size in sizes.items()}, layers


def size_of(model: nn.Module) -> dict[str, int]:
    """Parameters and bytes of a model that has become smaller."""
    parameters = list(model.parameters())
    return {
        "parameters_left": sum(p.numel() for p in parameters),
        "memory/model_bytes": sum(p.numel() * p.element_size() for p in parameters),
    }


def sizes_of(
    rows: int, columns: int, nonzeros: int, bytes_each: int, nm: tuple[int, int] | None = None
) -> dict[str, int]:
    """Bytes of one weight by format.

    Args:
        rows: outputs.
        columns: inputs.
        nonzeros: that stay.
        bytes_each: of a value.
        nm: N and M, if that is its pattern.
    """
    place = 2 if columns <= 2**16 else 4
    found = {
        "dense": rows * columns * bytes_each,
        "bitmap": math.ceil(rows * columns / 8) + nonzeros * bytes_each,
        "csr": nonzeros * (bytes_each + place) + 4 * (rows + 1),
    }
    if nm and columns % nm[1] == 0:
        slots = rows * columns // nm[1] * nm[0]
        found["nm"] = slots * bytes_each + math.ceil(slots * math.ceil(math.log2(nm[1])) / 8)
    return found


def _head(model: nn.Module) -> int:
    """Weights of the matrix that gives the logits."""
    found: Any = getattr(model, "get_output_embeddings", lambda: None)()
    return 0 if found is None else int(found.weight.numel())
