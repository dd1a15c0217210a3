"""Weight clustering and quantising, and the bytes of a network on disk.

The steps of deep compression (Han et al. 2016, arXiv 1510.00149) as the tiny time-series
transformer takes them (arXiv 2303.08951; github.com/tallamjr/astronet, ``astronet/tinho``, which
calls TensorFlow's tools and zips what it saves). Weights that are zero stay zero in each step, so
a pruned network keeps its zeros.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_INDEX, _VALUES = "index.json", "values"


@dataclass(frozen=True)
class Compressed:
    """One tensor as it is stored: values, or codes of them.

    Attributes:
        codes: int8, uint8, float16 or float32, of the tensor's shape.
        scale: what integer values are multiplied by; None where they are not.
        book: the values that codes stand for, of one dimension; None where they are values.
    """

    codes: Tensor
    scale: float | None = None
    book: Tensor | None = None

    def tensor(self) -> Tensor:
        """The tensor that this stands for; float32 if it is scaled."""
        values = self.codes if self.book is None else self.book[self.codes.long()]
        return values if self.scale is None else values.float() * self.scale


def clustered(weight: Tensor, clusters: int, rounds: int = 300) -> Compressed:
    """Weights by k-means of one dimension, from centroids evenly between the extremes.

    Zeros, if there are any, are a cluster of their own at exactly 0, whose code is 0; the others
    are shared by one cluster less. A centroid to which no weight is nearest stays where it is.

    Args:
        weight: of any shape.
        clusters: k, from 2 to 256.
        rounds: at most so many; nearly always far fewer settle it.

    Returns:
        uint8 codes and a float32 book of k values.
    """
    flat = weight.detach().flatten().double()
    present = flat != 0
    values = flat[present]
    zeros = int(values.numel() < flat.numel())
    if not values.numel():
        return Compressed(torch.zeros_like(weight, dtype=torch.uint8), book=torch.zeros(1))
    centres = torch.linspace(
        float(values.min()), float(values.max()), clusters - zeros, dtype=torch.float64
    )
    nearest = _nearest(values, centres)
    for _ in range(rounds):
        sums = torch.zeros_like(centres).index_add_(0, nearest, values)
        members = torch.bincount(nearest, minlength=len(centres))
        centres = torch.where(members > 0, sums / members.clamp_min(1), centres)
        before, nearest = nearest, _nearest(values, centres)
        if torch.equal(before, nearest):
            break
    codes = torch.zeros(flat.numel(), dtype=torch.uint8)
    codes[present] = (nearest + zeros).to(torch.uint8)
    book = torch.cat([torch.zeros(zeros, dtype=torch.float64), centres]).float()
    return Compressed(codes.view(weight.shape), book=book)


def _nearest(values: Tensor, centres: Tensor) -> Tensor:
    """Index of the nearest centre (rising) of each value; of two as near, the lower."""
    return torch.bucketize(values, (centres[1:] + centres[:-1]) / 2)


def quantised(stored: Compressed, bits: int) -> Compressed:
    """Values, or the book of a clustered tensor, with few bits.

    Args:
        stored: a tensor of floats, or a clustered one.
        bits: 16 for half precision; from 2 to 8 for whole numbers from -(2^(bits-1) - 1) to
            2^(bits-1) - 1, times one scale for the tensor, which maps the largest magnitude to
            the last of them (symmetric, so that 0 is 0).
    """
    if stored.book is not None:
        small = quantised(Compressed(stored.book), bits)
        return replace(stored, book=small.codes, scale=small.scale)
    values = stored.codes.float()
    if bits == 16:
        return Compressed(values.half())
    last = 2 ** (bits - 1) - 1
    scale = float(values.abs().max()) / last or 1.0
    return Compressed((values / scale).round().clamp(-last, last).to(torch.int8), scale=scale)


def save(tensors: Mapping[str, Compressed], path: Path) -> int:
    """Write a zip (deflate, level 9) of an index in JSON and one block of all values.

    Codes of at most 2, 4 or 16 values are packed to 1, 2 or 4 bits.

    Returns:
        Bytes of the file.
    """
    index, blocks = [], []
    for name, stored in tensors.items():
        width = _width(stored)
        entry: dict[str, Any] = {"name": name, "shape": list(stored.codes.shape), "bits": width}
        entry |= {"type": _type(stored.codes), "scale": stored.scale}
        codes = stored.codes.contiguous().flatten().numpy()
        blocks.append(codes.tobytes() if width is None else _packed(codes, width))
        if stored.book is not None:
            entry |= {"book": len(stored.book), "values": _type(stored.book)}
            blocks.append(stored.book.numpy().tobytes())
        index.append(entry)
    with zipfile.ZipFile(path, "w") as archive:
        for part, content in ((_INDEX, json.dumps(index).encode()), (_VALUES, b"".join(blocks))):
            # ZipInfo knows no time, so that equal networks are equal files
            archive.writestr(zipfile.ZipInfo(part), content, zipfile.ZIP_DEFLATED, 9)
    return path.stat().st_size


def load(path: Path) -> dict[str, Compressed]:
    """What :func:`save` has written."""
    with zipfile.ZipFile(path) as archive:
        index, block = json.loads(archive.read(_INDEX)), archive.read(_VALUES)
    found, place = {}, 0

    def take(kind: str, count: int) -> np.ndarray[Any, Any]:
        nonlocal place
        values = np.frombuffer(block, kind, count, place)
        place += values.nbytes
        return values.copy()

    for entry in index:
        count = math.prod(entry["shape"])
        if entry["bits"] is None:
            codes = take(entry["type"], count)
        else:
            codes = _unpacked(take("uint8", -(-count * entry["bits"] // 8)), entry["bits"], count)
        book = torch.from_numpy(take(entry["values"], entry["book"])) if "book" in entry else None
        tensor = torch.from_numpy(codes).reshape(entry["shape"])
        found[entry["name"]] = Compressed(tensor, entry["scale"], book)
    return found


def _type(tensor: Tensor) -> str:
    return str(tensor.numpy().dtype)


def _width(stored: Compressed) -> int | None:
    """Bits of a code; None where the codes are values. Divisors of 8, which deflate better."""
    if stored.book is None:
        return None
    return next(bits for bits in (1, 2, 4, 8) if len(stored.book) <= 2**bits)


def _packed(codes: np.ndarray[Any, Any], width: int) -> bytes:
    bits = np.unpackbits(codes[:, None], axis=1)[:, 8 - width :]
    return np.packbits(bits).tobytes()


def _unpacked(packed: np.ndarray[Any, Any], width: int, count: int) -> np.ndarray[Any, Any]:
    bits = np.unpackbits(packed, count=count * width).reshape(count, width)
    return np.packbits(np.pad(bits, ((0, 0), (8 - width, 0))), axis=1)[:, 0].copy()
