"""Runs that are paired by their seeds: mean, spread and difference."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences and its confidence interval by Student's t."""

    mean: float
    low: float | None
    """None where there is one pair: it tells nothing of the spread."""
    high: float | None
    pairs: int


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation with n - 1; None for the deviation of one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """How far `values` lie over `baseline`, in pairs of the same seed, with a 95 % interval."""
    from scipy import stats  # noqa: PLC0415  slow to import

    mean, spread = mean_and_spread([value - base for value, base in zip(values, baseline, strict=True)])
    if spread is None:
        return Difference(mean, None, None, 1)
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    half = quantile * spread / math.sqrt(len(values))
    return Difference(mean, mean - half, mean + half, len(values))
