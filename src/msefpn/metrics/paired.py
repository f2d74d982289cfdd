"""Runs that are paired by their seeds: mean, spread and difference."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
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


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation with n - 1; None for the deviation of one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> PairedDifference:
    """Mean of `values` minus `baseline`, in pairs of the same seed, with a 95 % interval."""
    mean, spread = mean_and_spread([value - base for value, base in zip(values, baseline, strict=True)])
    if spread is None:
        return PairedDifference(mean, None, None, 1)
    half = student_t(CONFIDENCE, len(values) - 1) * spread / math.sqrt(len(values))
    return PairedDifference(mean, mean - half, mean + half, len(values))


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
