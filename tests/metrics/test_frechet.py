import numpy as np
import pytest
import scipy.linalg

from diffusion.metrics.frechet import frechet_distance, statistics


def gaussian_features(seed, n, d):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


def test_agrees_with_the_matrix_square_root_of_scipy():
    a, b = statistics(gaussian_features(0, 500, 12)), statistics(gaussian_features(1, 400, 12))
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_one_dimension_in_closed_form():
    a, b = statistics(np.array([[0.0], [2.0]])), statistics(np.array([[5.0], [13.0]]))
    assert frechet_distance(a, b) == pytest.approx((1 - 9) ** 2 + (np.sqrt(2) - np.sqrt(32)) ** 2)


def test_singular_covariances_are_fine_and_equal_sets_are_at_zero():
    few = statistics(gaussian_features(2, 5, 20))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-4)
    moved = few._replace(mean=few.mean + 1)
    assert frechet_distance(few, moved) == pytest.approx(20, abs=1e-4)


def test_errors():
    with pytest.raises(ValueError, match="at least 2"):
        statistics(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="12 and 3 features"):
        frechet_distance(statistics(gaussian_features(0, 50, 12)), statistics(gaussian_features(0, 50, 3)))
