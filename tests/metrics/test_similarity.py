"""Linear CKA against its definition by dense matrices, its invariances, and what it expects of chance."""

import numpy as np
import pytest
from numpy.typing import NDArray

from msefpn.metrics.similarity import cka, contrast, moments

RNG = np.random.default_rng(7)


def dense_hsic1(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Nguyen et al., equation 3, as it is written."""
    n = len(x)
    k, own = (values @ values.T for values in (x, y))
    np.fill_diagonal(k, 0)
    np.fill_diagonal(own, 0)
    one = np.ones(n)
    total = np.trace(k @ own) + (one @ k @ one) * (one @ own @ one) / ((n - 1) * (n - 2))
    return float((total - 2 / (n - 2) * (one @ k @ own @ one)) / (n * (n - 3)))


def dense_hsic0(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """tr(K H L H): Kornblith et al., equation 3, without its factor, which CKA loses."""
    centre = np.eye(len(x)) - 1 / len(x)
    return float(np.trace(x @ x.T @ centre @ y @ y.T @ centre))


@pytest.mark.parametrize(("cells", "p", "q"), [(4, 3, 5), (9, 2, 2), (40, 60, 7)])
def test_moments_agree_with_dense_matrices(cells: int, p: int, q: int) -> None:
    x, y = RNG.normal(3, 1, (cells, p)), RNG.normal(-1, 2, (cells, q))
    for unbiased, dense in ((True, dense_hsic1), (False, dense_hsic0)):
        expected = [dense(x, y), dense(x, x), dense(y, y)]
        assert moments(x, y, unbiased=unbiased) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("unbiased", [True, False])
def test_equal_up_to_rotation_factor_and_shift_is_one(unbiased: bool) -> None:
    x = RNG.normal(size=(30, 6)) * [1, 2, 3, 4, 5, 6]
    rotation, _ = np.linalg.qr(RNG.normal(size=(6, 6)))
    assert cka(moments(x, x, unbiased=unbiased)) == pytest.approx(1)
    assert cka(moments(x, -7 * x @ rotation + 3, unbiased=unbiased)) == pytest.approx(1)
    stretched = x * [100, 1, 1, 1, 1, 1]  # no rotation: it is another representation
    assert cka(moments(x, stretched, unbiased=unbiased)) < 0.9


def test_chance_is_zero_for_the_unbiased_estimate_alone() -> None:
    draws = [(RNG.normal(size=(36, 64)), RNG.normal(size=(36, 64))) for _ in range(200)]
    values = [float(cka(moments(x, y))) for x, y in draws]
    assert abs(np.mean(values)) < 4 * np.std(values) / 200**0.5
    assert max(np.abs(values)) < 0.3
    assert cka(moments(*draws[0], unbiased=False)) > 0.5


def test_shared_part_lies_between_and_is_symmetric() -> None:
    shared = RNG.normal(size=(400, 8))
    x, y = (np.hstack([shared, RNG.normal(size=(400, 8))]) for _ in range(2))
    value = float(cka(moments(x, y)))
    assert value == pytest.approx(0.5, abs=0.05)  # half of the variance of each, in as many directions
    assert float(cka(moments(y, x))) == pytest.approx(value)


def test_too_few_cells_and_constant_maps_have_no_number() -> None:
    x = RNG.normal(size=(3, 2))
    assert np.isnan(moments(x, x)).all()
    assert np.isnan(cka(moments(np.ones((9, 2)), RNG.normal(size=(9, 2)))))


def _images(shared: float, count: int) -> NDArray[np.float64]:
    rows = []
    for _ in range(count):
        base = RNG.normal(size=(50, 4))
        noise = RNG.normal(size=(2, 50, 4))
        rows.append(moments(shared * base + noise[0], shared * base + noise[1]))
    return np.array(rows)


def test_contrast_gives_mean_change_and_interval() -> None:
    before, after = _images(0.5, 40), _images(2.0, 40)
    alone = contrast([(1, after)])
    assert alone.value == pytest.approx(float(cka(after.mean(axis=0))))
    assert alone.spread == pytest.approx(np.std(cka(after), ddof=1))
    assert alone.low is not None
    assert alone.high is not None
    assert alone.low < alone.value < alone.high
    change = contrast([(1, after), (-1, before)])
    assert change.value == pytest.approx(alone.value - contrast([(1, before)]).value)
    assert change.low is not None
    assert change.low > 0
    none = contrast([(1, before), (-1, before)])
    assert (none.value, none.low, none.high) == (0, 0, 0)  # the same images are drawn for both


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    truth = float(cka(_images(1.0, 4000).mean(axis=0)))
    intervals = [contrast([(1, _images(1.0, 25))]) for _ in range(100)]
    hits = sum((of.low or 0) <= truth <= (of.high or 0) for of in intervals)
    assert 85 <= hits <= 100


def test_few_images_have_no_interval() -> None:
    one = contrast([(1, _images(1.0, 1))])
    assert (one.spread, one.low, one.images) == (None, None, 1)
    assert contrast([(1, _images(1.0, 9))]).low is None
