"""Means over seeds with their intervals, and differences paired by seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

#: Seeds below which a mean has no interval.
LEAST = 3


@dataclass(frozen=True)
class Estimate:
    """A mean and where it lies.

    Attributes:
        mean: of the values.
        low: lower end of the interval; None below :data:`LEAST` values.
        high: upper end of the interval.
        n: number of values.
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def half(self) -> float | None:
        """Half the width of the interval."""
        return None if self.high is None else self.high - self.mean

    def scaled(self, factor: float) -> Estimate:
        """The same in another unit."""
        low, high = (None if end is None else factor * end for end in (self.low, self.high))
        return Estimate(factor * self.mean, low, high, self.n)


def estimate(values: Iterable[float], level: float = 0.95) -> Estimate | None:
    """Mean and t-interval of independent values; None if there are none.

    Args:
        values: one for each seed.
        level: coverage of the interval, for values that are normal.

    Example:
        >>> estimate([1.0, 2.0, 3.0])
        Estimate(mean=2.0, low=-0.484..., high=4.484..., n=3)
    """
    given = [float(value) for value in values]
    n = len(given)
    if not n:
        return None
    mean = math.fsum(given) / n
    if n < LEAST:
        return Estimate(mean, None, None, n)
    variance = math.fsum((value - mean) ** 2 for value in given) / (n - 1)
    half = _quantile(0.5 + level / 2, n - 1) * math.sqrt(variance / n)
    return Estimate(mean, mean - half, mean + half, n)


def paired(
    first: Mapping[int, float], second: Mapping[int, float], level: float = 0.95
) -> Estimate | None:
    """Mean difference ``first - second`` over the seeds both have, with its t-interval.

    What a seed does to both (data order, initialisation) cancels, so this separates methods
    that their own intervals do not.

    Args:
        first: values by seed.
        second: values by seed.
        level: coverage of the interval.
    """
    common = sorted(first.keys() & second.keys())
    return estimate((first[seed] - second[seed] for seed in common), level)


def _quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t; ``scipy.stats`` has it too and takes a second to import."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))
