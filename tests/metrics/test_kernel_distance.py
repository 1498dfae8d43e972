import numpy as np
import pytest

from diffusion.metrics import pairs
from diffusion.metrics.kernel_distance import distance_of_all, distance_of_subsets, estimates


def kernel(x, y):
    return (x.astype(np.float64) @ y.astype(np.float64).T / x.shape[1] + 1) ** 3


def unbiased(x, y):
    inner = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (kernel(x, x), kernel(y, y))]
    return sum(inner) - 2 * kernel(x, y).mean()


def raw_moments(mean, deviation):
    """E x^j of a Gaussian, j = 0..3."""
    return np.array([1, mean, mean**2 + deviation**2, mean**3 + 3 * mean * deviation**2])


def between_gaussians(first, second):
    """MMD^2 of two Gaussians with independent coordinates, one or two of them, by multinomial expansion of the kernel.

    first, second: [(mean, deviation), ...]. (x.y / d + 1)^3 is a sum of products of monomials of x and of y, so
    MMD^2 is the sum of its coefficients times the squared difference of those monomials' means.
    """
    d = len(first)
    coefficients = {1: {(0,): 1, (1,): 3, (2,): 3, (3,): 1}}.get(d) or {
        (a, b): 6 / np.prod([np.prod(np.arange(1, j + 1)) for j in (a, b, 3 - a - b)]) / d ** (a + b)
        for a in range(4)
        for b in range(4 - a)
    }
    sides = [[raw_moments(*axis) for axis in side] for side in (first, second)]
    return sum(
        c
        * (
            np.prod([m[j] for m, j in zip(sides[0], js, strict=True)])
            - np.prod([m[j] for m, j in zip(sides[1], js, strict=True)])
        )
        ** 2
        for js, c in coefficients.items()
    )


def draws(axes, n, seed):
    rng = np.random.default_rng(seed)
    return np.stack([rng.normal(mean, deviation, n) for mean, deviation in axes], 1)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([(0.0, 1.0)], [(0.5, 1.0)]),
        ([(0.2, 0.5)], [(0.2, 1.0)]),
        ([(0.0, 1.0), (1.0, 0.5)], [(0.3, 1.2), (1.0, 0.7)]),
        ([(0.4, 1.0), (0.0, 0.5)], [(0.4, 1.0), (0.0, 0.5)]),  # equal: the mean is zero
    ],
)
def test_small_subsets_are_right_on_average(first, second):
    """2000 independent estimates of 5 samples each, which would show a third of the bias of keeping i = j."""
    rows = np.arange(10_000).reshape(2_000, 5)
    x, y = draws(first, 10_000, 0), draws(second, 10_000, 1)
    found = estimates(x, y, rows, rows, progress=False)
    error = found.std() / np.sqrt(len(found))
    assert abs(found.mean() - between_gaussians(first, second)) < 3.5 * error
    with_all = np.array(
        [
            kernel(a, a).mean() + kernel(b, b).mean() - 2 * kernel(a, b).mean()
            for a, b in zip(x[rows], y[rows], strict=True)
        ]
    )
    assert with_all.mean() - between_gaussians(first, second) > 10 * error
    assert (found < 0).any()


def test_the_closed_form_is_that_of_many_samples():
    first, second = [(0.0, 1.0), (1.0, 0.5)], [(0.3, 1.2), (1.0, 0.7)]
    value, error = distance_of_all(draws(first, 3_000, 2), draws(second, 3_000, 3))
    assert abs(value - between_gaussians(first, second)) < 3.5 * error
    assert error < 0.2 * value


def test_all_rows_at_once_equal_the_definition_in_float64(monkeypatch):
    monkeypatch.setattr(pairs, "CHUNK", 64)
    rng = np.random.default_rng(0)
    x, y = (np.abs(rng.normal(size=(n, 200))).astype(np.float32) for n in (333, 290))
    y *= 1.01
    found = distance_of_all(x, y)
    assert found.value == pytest.approx(unbiased(x, y), abs=2e-7)
    rows = [np.stack([np.random.default_rng(s).permutation(n)[:100] for s in range(3)]) for n in (333, 290)]
    each = [unbiased(x[i], y[j]) for i, j in zip(*rows, strict=True)]
    np.testing.assert_allclose(estimates(x, y, *rows, progress=False), each, atol=2e-7)


def test_the_error_is_the_jackknife_written_out():
    x, y = draws([(0.0, 1.0)] * 3, 90, 0), draws([(0.5, 1.0)] * 3, 70, 1)
    left_out = (
        [unbiased(np.delete(x, i, 0), y) for i in range(90)],
        [unbiased(x, np.delete(y, i, 0)) for i in range(70)],
    )
    variance = sum((len(values) - 1) * np.var(values) for values in left_out)
    assert distance_of_all(x, y).error == pytest.approx(np.sqrt(variance), rel=1e-4)


def test_the_jackknife_error_is_the_deviation_of_repetitions():
    first, second = [(0.0, 1.0), (1.0, 0.5)], [(0.5, 1.2), (1.0, 0.7)]
    x, y = draws(first, 4_000, 4), draws(second, 4_000, 5)
    found = np.array([distance_of_all(x[i : i + 50], y[i : i + 50]) for i in range(0, 4_000, 50)])
    assert np.sqrt((found[:, 1] ** 2).mean()) == pytest.approx(found[:, 0].std(), rel=0.35)
    assert np.std(found[:, 0]) / np.sqrt(80) < between_gaussians(first, second)


def test_subsets_depend_on_the_seed_alone():
    x, y = draws([(0.0, 1.0)] * 4, 300, 0), draws([(0.5, 1.0)] * 4, 200, 1)
    once, again, other = (distance_of_subsets(x, y, 10, 100, seed) for seed in (0, 0, 1))
    assert once == again
    assert once.value != other.value
    assert distance_of_subsets(x, y, 2, 200).value != distance_of_subsets(x, y, 2, 100).value
    assert once.value == pytest.approx(distance_of_all(x, y).value, abs=6 * once.error)


def test_too_few_rows_for_a_subset():
    with pytest.raises(ValueError, match="generated has 300 rows, expected at least 1000: a subset has 1000 of them"):
        distance_of_subsets(np.zeros((300, 2)), np.zeros((2_000, 2)))
