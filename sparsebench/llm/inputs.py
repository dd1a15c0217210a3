"""What is measured of the inputs of a linear layer while calibration text runs through it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from sparsebench.errors import UserError

#: What a part may declare by ``@needs``: sums of squares, means and variances by column, X^T X.
MEASURES = ("squares", "moments", "gram")
#: Columns of a strip of the Gram matrix, of which only what is right of the diagonal is summed.
STRIP = 192


class Inputs:
    """Statistics of one input, shared by all layers that read it (query, key and value do).

    Sums are over all tokens and kept in float64, the Gram matrix in float32; ``sequences`` and
    ``tokens`` are what they may be divided by.
    """

    def __init__(self, width: int, measures: Iterable[str], device: torch.device) -> None:
        """Begin with nothing seen.

        Args:
            width: number of columns C.
            measures: names of :data:`MEASURES`.
            device: where the Gram matrix is held.
        """
        self.measures = frozenset(measures)
        self.width = width
        self.sequences = 0
        self.tokens = 0
        zeros = torch.zeros(width, dtype=torch.float64, device=device)
        self.squares = zeros.clone()
        self.sums = zeros.clone()
        self.within = zeros.clone()  # tokens x population variance within a sequence, summed
        self._upper = torch.zeros(width, width, device=device) if "gram" in self.measures else None
        self._factors: dict[float, Tensor] = {}

    def add(self, batch: Tensor) -> None:
        """Take in the activations of some sequences.

        Args:
            batch: (sequences, tokens, C), or (tokens, C) of one.
        """
        for x in batch.detach().reshape(-1, *batch.shape[-2:]).float():
            if len(x) == 0:  # an expert that no token was sent to
                continue
            self.sequences += 1
            self.tokens += len(x)
            if self._upper is not None:
                for part in self._strips():
                    right = slice(part.start, None)
                    self._upper[part, right].addmm_(x[:, part].t(), x[:, right])
            elif self.measures & {"squares", "moments"}:
                self.squares += torch.linalg.vector_norm(x, dim=0).double().square()
            if "moments" in self.measures:
                total = x.sum(0)
                self.sums += total.double()
                from_mean = torch.linalg.vector_norm(x - total / len(x), dim=0)
                self.within += from_mean.double().square()

    def _strips(self) -> list[slice]:
        """Columns of each strip; the last has what is left as well."""
        starts = range(0, max(self.width - STRIP, 0) + 1, STRIP)
        return [slice(a, b) for a, b in pairwise([*starts, self.width])]

    @property
    def gram(self) -> Tensor | None:
        """X^T X over all tokens, float32 (C, C), if it was measured."""
        if self._upper is not None:
            for part in self._strips():  # what is below the diagonal
                below = slice(part.stop, None)
                self._upper[below, part] = self._upper[part, below].t()
        return self._upper

    @property
    def finite(self) -> bool:
        """Whether there was no NaN and no infinity in what was seen."""
        seen = self.squares if self._upper is None else self._upper.diagonal()
        return bool(torch.isfinite(seen).all() and torch.isfinite(self.sums).all())

    @cached_property
    def mean_squares(self) -> Tensor:
        """S_j = sum over all tokens of x_j^2 / sequences, float32 (C)."""
        total = self.squares if self._upper is None else self._upper.diagonal().double()
        return (total / self.sequences).float()

    @cached_property
    def norms(self) -> Tensor:
        """||X_j||: the root of the sum of squares over all tokens, float32 (C)."""
        return (self.mean_squares.double() * self.sequences).sqrt().float()

    @cached_property
    def variance(self) -> Tensor:
        """Population variance within sequences, their mean over tokens, float32 (C)."""
        return (self.within / self.tokens).float()

    def dead(self) -> Tensor:
        """Bool (C): columns that are always zero."""
        return self.mean_squares == 0

    def factor(self, damping: float, name: str = "") -> Tensor:
        """Upper Cholesky factor U of the inverse of the damped Hessian (C, C).

        H = 2 / sequences x X^T X, with 1 on the diagonal of dead columns and ``damping`` times
        the mean of the diagonal added. If H is singular all the same, damping is raised tenfold.

        Args:
            damping: share of the diagonal's mean.
            name: of the layer, for messages.

        Raises:
            UserError: no damping up to 1 makes it regular.
        """
        if damping not in self._factors:
            self._factors[damping] = self._factor(damping, name)
        return self._factors[damping]

    def _factor(self, damping: float, name: str) -> Tensor:
        gram = self.gram
        assert gram is not None, "a part that looks at the Hessian needs 'gram'"
        h = gram * (2.0 / self.sequences)
        diagonal = h.diagonal()
        diagonal[self.dead()] = 1.0
        mean, tried = diagonal.mean(), damping
        while True:
            damped = h.clone()
            damped.diagonal().add_(tried * mean)
            lower, failed = torch.linalg.cholesky_ex(damped)
            if not failed:
                upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
                if not failed:
                    if tried != damping:
                        said = f"its Hessian is singular, damping {tried:g}"
                        print(f"sparsebench: {name}: {said}", file=sys.stderr)
                    found: Tensor = upper
                    return found
            tried = max(10 * tried, 1e-4)
            if tried > 1.0:
                raise UserError(
                    f"method.damping={damping:g}: the Hessian of '{name}' is singular; more "
                    "calibration text (calibration.samples) or more damping is needed"
                )
