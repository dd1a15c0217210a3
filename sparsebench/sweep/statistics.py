"""Means over seeds with their intervals and tests, and differences paired by seed or not.

``scipy.stats`` has most of this and takes a second to import; ``scipy.special`` does not.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

#: Seeds below which a mean has no interval.
LEAST = 3

#: More seeds than this are not proposed.
MOST = 10_000


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


@dataclass(frozen=True)
class Student:
    """A mean whose error follows Student's t: its intervals and tests need no more than this.

    Attributes:
        mean: as estimated.
        error: standard error of the mean; 0 where values have no spread.
        freedom: degrees of freedom of that error.
    """

    mean: float
    error: float
    freedom: float

    def p_above(self, bound: float) -> float:
        """One-sided p-value that speaks for a true mean above ``bound``."""
        return self._tail(bound - self.mean)

    def p_below(self, bound: float) -> float:
        """One-sided p-value that speaks for a true mean below ``bound``."""
        return self._tail(self.mean - bound)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Where the true mean lies, with both tails outside alike."""
        from scipy.special import stdtrit

        half = float(stdtrit(self.freedom, 0.5 + level / 2)) * self.error
        return self.mean - half, self.mean + half

    def _tail(self, short: float) -> float:
        from scipy.special import stdtr

        if not self.error:  # no chance is left, and on the bound nothing is said
            return 0.0 if short < 0 else 1.0
        return float(stdtr(self.freedom, short / self.error))


def student(values: Sequence[float]) -> Student:
    """The mean of at least two independent values, for their one-sample t-test."""
    mean, variance = _moments(values)
    return Student(mean, math.sqrt(variance / len(values)), len(values) - 1)


def welch(first: Sequence[float], second: Sequence[float]) -> Student:
    """Difference of the means ``first - second`` of two independent samples.

    Args:
        first: at least two values.
        second: at least two values; neither their number nor their spread need be equal.

    Source:
        Welch, The generalization of "Student's" problem, Biometrika 34 (1947), with the
        degrees of freedom of Satterthwaite.
    """
    (mean_a, variance_a), (mean_b, variance_b) = _moments(first), _moments(second)
    a, b = variance_a / len(first), variance_b / len(second)
    freedom = float(len(first) + len(second) - 2)
    if a + b:
        share = a / (a + b)  # not the squares of a and b, which may underflow
        freedom = 1 / (share**2 / (len(first) - 1) + (1 - share) ** 2 / (len(second) - 1))
    return Student(mean_a - mean_b, math.sqrt(a + b), freedom)


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
    if not given:
        return None
    if len(given) < LEAST:
        return Estimate(_moments(given)[0], None, None, len(given))
    found = student(given)
    return Estimate(found.mean, *found.interval(level), len(given))


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


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number; those below a level hold together at that level.

    Args:
        p_values: of all tests made, in any order.

    Source:
        Holm, A simple sequentially rejective multiple test procedure, Scand. J. Stat. 6 (1979).

    Example:
        >>> holm([0.03, 0.01, 0.04])
        [0.06, 0.03, 0.06]
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def power(effect: float, n: int, level: float = 0.05) -> float:
    """Chance that a two-sided one-sample t-test finds an effect, on its right side.

    Args:
        effect: distance of the true mean from the bound, in standard deviations; it may be
            infinite.
        n: values, at least two.
        level: of the test.

    Source:
        Cohen, Statistical Power Analysis for the Behavioral Sciences, 2nd ed. (1988), ch. 2;
        from the noncentral t.
    """
    from scipy.special import nctdtr, stdtrit

    if math.isinf(effect):
        return 1.0 if effect > 0 else 0.0
    critical = stdtrit(n - 1, 1 - level / 2)
    return 1.0 - float(nctdtr(n - 1, effect * math.sqrt(n), critical))


def seeds_needed(effects: Sequence[float], level: float, chance: float = 0.8) -> int | None:
    """How many seeds give t-tests that chance to find all effects; None above :data:`MOST`.

    Args:
        effects: as in :func:`power`; two for an equivalence, one for each margin.
        level: of each test, two-sided.
        chance: wanted; of several tests it is a lower bound.
    """

    def enough(n: int) -> bool:
        return sum(power(effect, n, level) - 1 for effect in effects) + 1 >= chance

    high = LEAST  # from below: far above the answer the noncentral t has no digits left
    while high < MOST and not enough(high):
        high = min(2 * high, MOST)
    if not enough(high):
        return None
    low = max(LEAST, high // 2)
    return bisect.bisect_left(range(low, high), True, key=enough) + low


def _moments(values: Sequence[float]) -> tuple[float, float]:
    """Mean and variance; equal values have exactly themselves, and 0."""
    if min(values) == max(values):
        return float(values[0]), 0.0
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
