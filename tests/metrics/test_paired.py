"""Paired differences against a textbook's numbers."""

import dataclasses

import pytest

from msefpn.metrics.paired import holm_confidences, mean_and_spread, paired_differences, student_t


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
    (found,) = paired_differences(
        [([base + step for base, step in zip(baseline, steps, strict=True)], baseline)]
    )
    half = quantile * deviation / len(steps) ** 0.5
    expected = {"mean": 2.0, "low": 2 - half, "high": 2 + half, "pairs": len(steps), "confidence": 0.95}
    assert dataclasses.asdict(found) == pytest.approx(expected, rel=1e-5)


def test_one_pair_has_no_interval() -> None:
    alone, other = paired_differences([([3.0], [1.0]), ([1.0, 3.0], [0.0, 0.0])])
    assert dataclasses.astuple(alone) == (2.0, None, None, 1, None)
    assert other.confidence == 0.95  # a row without an interval is none of those that are corrected for


@pytest.mark.parametrize(
    ("p_values", "divisors"),
    [
        # two are rejected: adjusted, in order of size, they are 0.02, 0.03, 0.06 and 0.06
        ([0.01, 0.04, 0.03, 0.005], [3, 2, 2, 4]),
        ([0.04, 0.045], [2, 2]),  # neither, although the second is under 5 %
        ([0.024, 0.045], [2, 1]),
        ([None, 0.2], [None, 1]),
    ],
)
def test_confidence_after_holm(p_values: list[float | None], divisors: list[int | None]) -> None:
    expected = [None if divisor is None else 1 - 0.05 / divisor for divisor in divisors]
    assert holm_confidences(p_values) == pytest.approx(expected)


def test_interval_excludes_zero_where_holm_rejects() -> None:
    special = pytest.importorskip("scipy.special")
    baseline = [0.0] * 4
    rows = [
        [1.0, 1.1, 0.9, 1.0],
        [0.5, 1.5, 1.0, 2.0],
        [0.3, 2.0, 1.4, 0.9],
        [-1.0, 1.0, 0.5, 0.0],
        [2.0] * 4,
    ]
    found = paired_differences([(row, baseline) for row in rows])
    tested = []
    for row in rows:
        mean, spread = mean_and_spread(row)
        tested.append(2 * special.stdtr(3, -mean / spread * 2) if spread else 0.0)
    order = sorted(range(5), key=tested.__getitem__)
    rejected = [tested[place] <= 0.05 / (5 - rank) for rank, place in enumerate(order)]
    clear = [(found[place].low or 0) > 0 for place in order]
    assert clear == [all(rejected[: rank + 1]) for rank in range(5)]
    assert 0 < sum(clear) < 5


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_quantile_is_that_of_scipy(confidence: float) -> None:
    special = pytest.importorskip("scipy.special")
    for freedom in (1, 2, 3, 4, 7, 10, 29, 120):
        expected = special.stdtrit(freedom, (1 + confidence) / 2)
        assert student_t(confidence, freedom) == pytest.approx(expected, rel=1e-10)
