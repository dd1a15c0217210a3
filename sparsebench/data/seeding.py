"""Random streams that are a function of their name alone."""

from __future__ import annotations

import hashlib

import torch


def number(*parts: int | str) -> int:
    """A 63-bit seed made of ``parts``; other parts give an unrelated number."""
    text = ":".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator whose stream depends on ``parts`` and on nothing else.

    Worker, rank, resume point and the global generators play no role, so whatever is
    drawn from it can be drawn again in another process.
    """
    return torch.Generator().manual_seed(number(*parts))
