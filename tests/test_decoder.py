import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_ndtr, logsumexp, ndtr, softmax
from scipy.stats import norm

from diffusion import decoder
from diffusion.data.scaling import to_unit_range

log_prob = functools.partial(jax.jit, static_argnums=3)(decoder.log_prob)


def values(n):
    """The n values of a data set, as the pipeline makes them."""
    return to_unit_range(np.arange(n, dtype=np.uint8), n)


def truth(k, mean, log_variance, n):
    """log P of the k-th of n bins in float64, by differences of the lower tail's logarithm."""
    edges = np.append(np.append(-np.inf, (2 * np.arange(1, n) - n) / (n - 1)), np.inf)
    mean, scale = np.asarray(mean, np.float64), np.exp(np.asarray(log_variance, np.float64) / 2)
    a, b = (edges[k] - mean) / scale, (edges[k + 1] - mean) / scale
    low, high = (
        np.where(a + b > 0, -b, a),
        np.where(a + b > 0, -a, b),
    )  # reflected, so that the bin is in the lower tail
    with np.errstate(divide="ignore", invalid="ignore"):
        tail = log_ndtr(high) + np.log1p(-np.exp(log_ndtr(low) - log_ndtr(high)))
        inside = np.log1p(-ndtr(low) - ndtr(-high))
    return np.where(high > 0, inside, tail)


def hard_cases(n, count=60_000):
    """(k, mean, log_variance): scales from 1e-4 to 3, means anywhere and close to the bin or to one of its edges."""
    rng = np.random.default_rng(n)
    k, scale = rng.integers(0, n, count), np.exp(rng.uniform(np.log(1e-4), np.log(3), count))
    near = values(n)[k] + rng.integers(-1, 2, count) / (n - 1) + rng.uniform(-8, 8, count) * scale
    mean = np.where(rng.random(count) < 0.5, near, rng.uniform(-1.2, 1.2, count))
    return k, mean.astype(np.float32), (2 * np.log(scale)).astype(np.float32)


@pytest.mark.parametrize("n", [2, 17, 256])
def test_bins_sum_to_one(n):
    mean, log_variance = np.linspace(-1.2, 1.2, 601), 2 * np.log(np.geomspace(1e-4, 1, 21))
    for one in log_variance.astype(np.float32):
        grid = jnp.broadcast_arrays(values(n)[None], jnp.asarray(mean, jnp.float32)[:, None])
        log_p = log_prob(*grid, one, n)
        np.testing.assert_allclose(jnp.exp(log_p).sum(-1), 1, atol=1e-6)
        np.testing.assert_allclose(np.exp(np.asarray(log_p, np.float64)).sum(-1), 1, atol=5e-7)


@pytest.mark.parametrize("n", [2, 17, 256])
def test_log_prob_is_the_float64_difference_of_tails(n):
    k, mean, log_variance = hard_cases(n)
    expected = truth(k, mean, log_variance, n)
    error = abs(log_prob(values(n)[k], mean, log_variance, n) - expected)
    assert expected.min() < -2e7  # the tails are far
    assert (error <= 1e-6 * np.maximum(1, abs(expected))).all()
    assert (error <= 5e-6)[abs(expected) < 10].all()
    sure = (expected > -1e-3) & (expected < -1e-30)  # log P near 0 keeps its digits: it is not a rounded log(1)
    assert sure.sum() > 100
    assert (error <= 1e-4 * abs(expected))[sure].all()


@pytest.mark.parametrize("n", [2, 17, 256])
def test_gradients_are_those_of_the_truth(n):
    k, mean, log_variance = hard_cases(n)
    gradient = jax.jit(jax.vmap(jax.grad(decoder.log_prob, argnums=(1, 2)), in_axes=(0, 0, 0, None)), static_argnums=3)
    of_mean, of_log_variance = gradient(values(n)[k], mean, log_variance, n)
    mean, log_variance, d = mean.astype(np.float64), log_variance.astype(np.float64), 1e-4
    scale = np.exp(log_variance / 2)
    z = abs(values(n)[k] - mean) / scale
    difference = lambda m, v: (truth(k, mean + m, log_variance + v, n) - truth(k, mean - m, log_variance - v, n)) / 2
    assert (abs(of_mean * scale - difference(d * scale, 0) / d) <= 2e-6 * (1 + z)).all()
    assert (abs(of_log_variance - difference(0, d) / d) <= 2e-6 * (1 + z**2)).all()


def test_twenty_thousand_scales_away():
    """The ends are open: there the tail beyond the near edge counts, not a narrow bin."""
    for k, mean in [(0, 1.0), (128, -1.0), (254, -1.0), (255, -1.0)]:
        got = log_prob(values(256)[k], jnp.float32(mean), jnp.float32(2 * np.log(1e-4)), 256)
        expected = truth(k, mean, np.float32(2 * np.log(1e-4)), 256)
        assert float(got) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("n", [0, 2, 17, 256])
def test_values_and_gradients_are_finite_for_any_input(n):
    mean = jnp.array([-1e6, -1.2, -1.0, -1e-30, 0.0, 0.2, 1.0, 1e6])
    x_0, mean, log_variance = jnp.meshgrid(jnp.array([-1.0, 0.0, 1.0]), mean, jnp.array([-300.0, -60, -18, 0, 60, 300]))
    for of in (mean, jnp.nextafter(x_0, 2.0), x_0):  # and means that are the value itself
        gradients = jax.grad(lambda m, v: log_prob(x_0, m, v, n).sum(), argnums=(0, 1))(of, log_variance)
        for result in (log_prob(x_0, of, log_variance, n), *gradients):
            assert np.isfinite(result).all()


@pytest.mark.parametrize("scale", [1e-4, 0.01, 1.0])
def test_log_prob_falls_as_the_mean_leaves_the_bin(scale):
    """Across the borders of the three formulas too."""
    for k in (0, 100, 255):
        x_0 = values(256)[k]
        for side in (-1, 1):
            mean = jnp.asarray(x_0 + side * np.concatenate([np.linspace(0, 6 * scale, 3000), np.linspace(0, 3, 3000)]))
            log_p = np.asarray(log_prob(jnp.full_like(mean, x_0), mean, jnp.float32(2 * np.log(scale)), 256))
            outwards = side if k == 0 else -side if k == 255 else 1
            for walk in (log_p[:3000], log_p[3000:]):
                assert (outwards * np.diff(walk) <= 1e-6 * np.maximum(1, abs(walk[1:]))).all()


def test_a_number_between_the_values_counts_as_the_nearest():
    mean, log_variance = jnp.linspace(-1, 1, 256), jnp.float32(-6.0)
    for moved in (values(256) + np.float32(0.4 * 2 / 255), 1.0001 * values(256)):
        np.testing.assert_array_equal(
            log_prob(moved, mean, log_variance, 256), log_prob(values(256), mean, log_variance, 256)
        )


def test_continuous_data_has_the_density_and_narrow_bins_tend_to_it():
    rng = np.random.default_rng(0)
    x_0, mean, log_variance = (
        rng.uniform(low, high, 1000).astype(np.float32) for low, high in [(-1, 1), (-2, 2), (-9, 3)]
    )
    density = log_prob(x_0, mean, log_variance, 0)
    expected = norm.logpdf(*(a.astype(np.float64) for a in (x_0, mean)), np.exp(log_variance.astype(np.float64) / 2))
    np.testing.assert_allclose(density, expected, rtol=1e-6, atol=1e-6)

    x_0, mean = values(256)[1:-1], rng.uniform(-1, 1, 254).astype(np.float32)
    binned, density = (log_prob(x_0, mean, jnp.float32(0), n) for n in (256, 0))
    np.testing.assert_allclose(binned, density + np.log(2 / 255), atol=1e-5)  # h^2 / 6 = 2.6e-6 is the bins' own


@pytest.mark.parametrize("n", [2, 17, 256])
def test_log_posterior_is_bayes_rule_over_the_values(n):
    """In float64, with the derivative by the log-SNR: the mean slope of the exponents over P."""
    rng = np.random.default_rng(n)
    k, eps, log_snr = rng.integers(0, n, (40, 6)), rng.normal(size=(40, 6)), np.linspace(-20, 16, 40)
    x_0, eps = values(n)[k], eps.astype(np.float32)
    exact = np.linspace(-1, 1, n)
    difference = exact[k][..., None] - exact
    r = np.exp(np.float64(np.float32(log_snr)) / 2)[:, None, None]
    exponents = -r * difference * (r * difference / 2 + eps[..., None])
    expected = -logsumexp(exponents, axis=-1)
    got = jax.jit(decoder.log_posterior, static_argnums=3)(x_0, eps, jnp.float32(log_snr), n)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
    assert (got <= 0).all()
    slopes = -r / 2 * difference * (r * difference + eps[..., None])
    of_log_snr = jax.grad(lambda log_snr: decoder.log_posterior(x_0, eps, log_snr, n).sum())(jnp.float32(log_snr))
    np.testing.assert_allclose(of_log_snr, -(softmax(exponents, -1) * slopes).sum((1, 2)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [1, -1])
def test_impossible_numbers_of_values_are_refused(n):
    with pytest.raises(ValueError, match=f"num_values={n}, expected at least 2"):
        decoder.log_prob(jnp.zeros(3), jnp.zeros(3), 0.0, n)
    with pytest.raises(ValueError, match=f"num_values={n}, expected at least 2"):
        decoder.log_posterior(jnp.zeros(3), jnp.zeros(3), 0.0, n)
