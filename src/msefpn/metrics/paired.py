"""Runs that are paired by their seeds: mean, spread and difference."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class PairedDifference:
    """The mean of paired differences and its confidence interval by Student's t."""

    mean: float
    low: float | None
    """None for one pair: its spread is unknown."""
    high: float | None
    pairs: int
    confidence: float | None
    """Of the interval, after Holm's correction."""


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation with n - 1; None for the deviation of one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def paired_differences(rows: Sequence[tuple[Sequence[float], Sequence[float]]]) -> list[PairedDifference]:
    """Means of each row's values minus its baseline's, in pairs of the same seed.

    The intervals are corrected for the number of rows by Holm's method (Scand. J. Statist. 6:65, 1979): where
    no row truly differs, the probability that any of them excludes zero is 5 %.
    """
    steps = [[value - base for value, base in zip(*row, strict=True)] for row in rows]
    return [_difference(*pair) for pair in zip(steps, holm_confidences(map(_p_value, steps)), strict=True)]


def holm_confidences(p_values: Iterable[float | None]) -> list[float | None]:
    """The confidence of each row's interval, which excludes zero where Holm's method rejects "no difference".

    The least of m p-values is tested at 5 % / m, the next at 5 % / (m - 1) if that was rejected, and so on;
    all others are tested as the first that is not.

    Args:
        p_values: None for a row that cannot be tested, which does not count.
    """
    given = list(p_values)
    ranked = sorted((p, place) for place, p in enumerate(given) if p is not None)
    found: list[float | None] = [None] * len(given)
    level, rejected = 0.0, True
    for rank, (p, place) in enumerate(ranked):
        if rejected:
            level = (1 - CONFIDENCE) / (len(ranked) - rank)
        rejected = p <= level
        found[place] = 1 - level
    return found


def _p_value(steps: Sequence[float]) -> float | None:
    """The probability of a mean as far from zero as that of `steps`, or farther, by chance."""
    mean, spread = mean_and_spread(steps)
    if spread is None:
        return None
    if spread == 0:
        return float(mean == 0)
    freedom = len(steps) - 1
    return 1 - _probability(math.atan(abs(mean) / spread * math.sqrt(len(steps) / freedom)), freedom)


def _difference(steps: Sequence[float], confidence: float | None) -> PairedDifference:
    mean, spread = mean_and_spread(steps)
    if spread is None or confidence is None:
        return PairedDifference(mean, None, None, len(steps), None)
    half = student_t(confidence, len(steps) - 1) * spread / math.sqrt(len(steps))
    return PairedDifference(mean, mean - half, mean + half, len(steps), confidence)


def student_t(confidence: float, freedom: int) -> float:
    """The t for which P(|T| < t) is `confidence`, by bisection.

    Args:
        confidence: over 0, below 1.
        freedom: degrees of freedom, at least 1.
    """
    low, high = 0.0, math.pi / 2
    while (angle := (low + high) / 2) not in (low, high):
        low, high = (angle, high) if _probability(angle, freedom) < confidence else (low, angle)
    return math.sqrt(freedom) * math.tan(angle)


def _probability(angle: float, freedom: int) -> float:
    """P(|T| < t) at the angle arctan(t / sqrt(freedom)): Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
