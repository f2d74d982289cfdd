"""Paired differences against a textbook's numbers."""

import dataclasses

import pytest

from msefpn.metrics.paired import mean_and_spread, paired_difference, student_t


def test_mean_and_spread() -> None:
    assert mean_and_spread([2.0, 4.0, 9.0]) == pytest.approx((5.0, 3.605551))
    assert mean_and_spread([2.0]) == (2.0, None)


@pytest.mark.parametrize(
    ("steps", "deviation", "quantile"),
    [
        ([1.0, 3.0], 2**0.5, 12.70620),
        ([1.0, 2.0, 3.0], 1.0, 4.30265),
        ([0.0, 0.0, 4.0, 4.0], 2.309401, 3.18245),
    ],
)
def test_interval_of_student(steps: list[float], deviation: float, quantile: float) -> None:
    baseline = [10.0 * i for i in range(len(steps))]  # how the seeds themselves spread does not matter
    found = paired_difference([base + step for base, step in zip(baseline, steps, strict=True)], baseline)
    half = quantile * deviation / len(steps) ** 0.5
    expected = {"mean": 2.0, "low": 2 - half, "high": 2 + half, "pairs": len(steps)}
    assert dataclasses.asdict(found) == pytest.approx(expected, rel=1e-5)


def test_one_pair_has_no_interval() -> None:
    assert dataclasses.astuple(paired_difference([3.0], [1.0])) == (2.0, None, None, 1)


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_quantile_is_that_of_scipy(confidence: float) -> None:
    special = pytest.importorskip("scipy.special")
    for freedom in (1, 2, 3, 4, 7, 10, 29, 120):
        expected = special.stdtrit(freedom, (1 + confidence) / 2)
        assert student_t(confidence, freedom) == pytest.approx(expected, rel=1e-10)
