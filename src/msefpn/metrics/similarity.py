"""How alike two representations of the same cells are: linear CKA, from an unbiased estimate of HSIC.

CKA: Kornblith et al., "Similarity of Neural Network Representations Revisited", arXiv 1905.00414, section 3.
The estimate HSIC_1 and its mean over batches: Nguyen et al., "Do Wide and Deep Networks Learn the Same
Things?", arXiv 2010.15327, equations 2 and 3, after Song et al., JMLR 13, 2012, equation 5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_CELLS = 4
"""Cells that the estimate needs."""
MIN_IMAGES = 10
"""Images that an interval needs: resampling fewer gives one that is too narrow."""
RESAMPLES = 2000

Moments = NDArray[np.float64]
"""(..., 3): HSIC of both representations, of the first with itself, of the second with itself."""


def moments(x: NDArray[np.floating], y: NDArray[np.floating], *, unbiased: bool = True) -> Moments:
    """HSIC with linear kernels K = X X^T and L = Y Y^T, for `cka`.

    HSIC_1 = (tr(K~ L~) + (1^T K~ 1)(1^T L~ 1) / ((n-1)(n-2)) - 2 / (n-2) 1^T K~ L~ 1) / (n (n-3)), where K~
    and L~ are K and L with zeros on the diagonal. It does not change when a column's mean is subtracted; then
    1^T K 1 = 0, and no n x n matrix is needed.

    Args:
        x: (n, p), a row for each cell.
        y: (n, q), the same cells.
        unbiased: else ||Y^T X||^2 of the centred columns (1905.00414, equation 1). That lies far too high
            where n does not exceed p and q by far: for random maps it nears 1.

    Returns:
        Three numbers; NaN with fewer than `MIN_CELLS` cells.
    """
    n = len(x)
    if n < MIN_CELLS:
        return np.full(3, np.nan)
    a, b = (_centred(values) for values in (x, y))
    pairs = ((a, b), (a, a), (b, b))
    if not unbiased:
        return np.array([np.square(u.T @ v).sum() for u, v in pairs])
    return np.array([_hsic1(u, v) for u, v in pairs])


def cka(of: Moments) -> NDArray[np.float64]:
    """CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), (...) of moments (..., 3).

    1 for representations that are equal up to a rotation and one factor; 0 is expected of independent ones,
    so that an estimate may lie below. NaN where a representation does not vary.
    """
    cross, first, second = np.moveaxis(of, -1, 0)
    varies = (first > 0) & (second > 0)
    scale = np.sqrt(np.where(varies, first * second, np.nan))
    return np.asarray(cross / scale)


@dataclass(frozen=True)
class Estimate:
    """A number over a set of images."""

    value: float
    spread: float | None
    """Standard deviation of the numbers of single images; None for one."""
    low: float | None
    """95 % interval over the choice of images, by resampling them; None for fewer than `MIN_IMAGES`."""
    high: float | None
    images: int


def contrast(terms: Sequence[tuple[float, Moments]]) -> Estimate:
    """A sum of CKAs, each over the same images: one alone, a change (-1, before; +1, after), and so on.

    Each CKA is that of the moments' means over the images (2010.15327, equation 2, an image for a batch). The
    interval is the 95 % percentile bootstrap; all terms share the images that are drawn, in pairs.

    Args:
        terms: factor, and moments (images, 3).
    """
    images = len(terms[0][1])
    value = sum(factor * float(cka(of.mean(axis=0))) for factor, of in terms)
    single = np.sum([factor * cka(of) for factor, of in terms], axis=0)
    spread = float(single.std(ddof=1)) if images > 1 else None
    low = high = None
    if images >= MIN_IMAGES and math.isfinite(value):
        drawn = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), RESAMPLES) / images
        sums = np.sum([factor * cka(drawn @ of) for factor, of in terms], axis=0)
        low, high = (float(side) for side in np.percentile(sums, [2.5, 97.5]))
    return Estimate(value, spread, low, high, images)


def _centred(values: NDArray[np.floating]) -> NDArray[np.float64]:
    precise = values.astype(np.float64)
    return np.asarray(precise - precise.mean(axis=0))


def _hsic1(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """HSIC_1 of centred columns."""
    n = len(a)
    k, own = (np.einsum("ij,ij->i", u, u) for u in (a, b))  # (n,), the diagonals
    trace = np.square(a.T @ b).sum() - k @ own
    total = trace + k.sum() * own.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ own)
    return float(total / (n * (n - 3)))
