import numpy as np
import pytest
import scipy.linalg

from diffusion.metrics.frechet import frechet, frechet_distance, statistics


def gaussian_features(seed, n, d):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


def test_agrees_with_the_matrix_square_root_of_scipy():
    a, b = statistics(gaussian_features(0, 500, 12)), statistics(gaussian_features(1, 400, 12))
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def by_singular_values(x, y):
    """The same distance without a covariance: tr (C_a C_b)^(1/2) is the sum of the singular values of A B^T."""
    a, b = ((rows - rows.mean(0)) / np.sqrt(len(rows) - 1) for rows in (x, y))
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * cross


@pytest.mark.parametrize("n", [2, 30, 100, 250])
def test_fewer_rows_than_features_agree_with_singular_values(n):
    x, y = gaussian_features(3, n, 100), gaussian_features(4, n + 10, 100)
    assert frechet_distance(statistics(x), statistics(y)) == pytest.approx(by_singular_values(x, y), rel=1e-6)


def test_singular_covariances_of_features_of_very_different_size_lose_no_digits():
    """Square roots of the eigenvalues of C_a^(1/2) C_b C_a^(1/2) are off by 9e-4 here, of 0.053."""
    rng = np.random.default_rng(0)
    scale = np.exp(2 * rng.normal(size=200))[None]
    x = rng.normal(size=(40, 200)) * scale
    y = x + 1e-2 * np.sqrt(scale) * rng.normal(size=x.shape)
    a, b = statistics(x), statistics(y)
    assert frechet_distance(a, b) == pytest.approx(by_singular_values(x, y), rel=1e-7)
    assert frechet_distance(b, a) == pytest.approx(by_singular_values(x, y), rel=1e-7)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_features_that_never_change_are_as_far_as_their_means():
    still = statistics(np.ones((5, 3)))
    assert frechet_distance(still, still._replace(mean=np.zeros(3))) == 3
    moving = statistics(gaussian_features(0, 9, 3))
    expected = ((moving.mean - 1) ** 2).sum() + np.trace(moving.covariance)
    assert frechet_distance(still, moving) == pytest.approx(expected, rel=1e-12)


def test_few_samples_of_one_distribution_are_apart_by_a_bias_that_falls_with_n():
    """About 1 / n: the reason that n is part of the number."""
    rng = np.random.default_rng(0)

    def mean_distance(n):
        return np.mean([frechet_distance(*(statistics(x) for x in rng.normal(size=(2, n, 6)))) for _ in range(60)])

    assert mean_distance(50) / mean_distance(400) == pytest.approx(8, rel=0.15)


def test_the_metric_reads_pooled_features_or_spatial_ones():
    a, b = statistics(gaussian_features(0, 50, 4)), statistics(gaussian_features(1, 50, 4))
    assert frechet().compute(a, b) == {"frechet": frechet_distance(a, b)}
    spatial = frechet("spatial")
    assert (spatial.reads, spatial.keeps) == ("spatial", "statistics")
    assert spatial.compute(a, b) == {"spatial_frechet": frechet_distance(a, b)}


def test_one_dimension_in_closed_form():
    a, b = statistics(np.array([[0.0], [2.0]])), statistics(np.array([[5.0], [13.0]]))
    assert frechet_distance(a, b) == pytest.approx((1 - 9) ** 2 + (np.sqrt(2) - np.sqrt(32)) ** 2)


def test_singular_covariances_are_fine_and_equal_sets_are_at_zero():
    few = statistics(gaussian_features(2, 5, 20))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-4)
    moved = few._replace(mean=few.mean + 1)
    assert frechet_distance(few, moved) == pytest.approx(20, abs=1e-4)


def test_errors():
    with pytest.raises(ValueError, match="expected at least 2"):
        statistics(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="12 and 3 features"):
        frechet_distance(statistics(gaussian_features(0, 50, 12)), statistics(gaussian_features(0, 50, 3)))
