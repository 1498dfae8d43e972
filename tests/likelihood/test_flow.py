"""The probability flow's likelihood against closed forms: Gaussians, mixtures, and data of 17 values."""

import importlib.util
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from diffusion import devices, keys, schedules
from diffusion.likelihood import ode_bpd
from diffusion.sampling import all_steps, resampled, strided, through, uniform_log_snr
from diffusion.types import Prediction, SelfConditioned, Step, expand
from tests import laws

needs_diffrax = pytest.mark.skipif(importlib.util.find_spec("diffrax") is None, reason="diffrax is optional")
VP, FLOW = schedules.vp_linear(), schedules.flow()
DENSITY = {"num_values": 0, "dequantise": "none", "trace": "exact"}


def from_pure_noise(num_levels=200, log_snr_max=12.0):
    times = FLOW.time_at(np.linspace(-10, log_snr_max, num_levels - 1))
    return through(FLOW, np.concatenate([[1.0], times, [0.0]]))


def sharper(log_snr_max, num_levels=200, schedule=VP):
    return uniform_log_snr(schedule, num_levels, log_snr_max=log_snr_max)


GRIDS = {
    "vp": (VP, sharper(12.0)),
    "sub-vp": (schedules.sub_vp_linear(), sharper(12.0, schedule=schedules.sub_vp_linear())),
    "ve": (schedules.ve_geometric(), strided(schedules.ve_geometric(), 200)),
    "edm": (schedules.edm(), sharper(12.0, schedule=schedules.edm())),
    "flow": (FLOW, from_pure_noise()),
    "ddpm": (None, all_steps(schedules.linear_beta())),
    "cosine": (None, all_steps(schedules.cosine_alpha_bar(400))),
    "zero terminal snr": (None, all_steps(schedules.zero_terminal_snr(schedules.linear_beta(400)))),
}
MEAN, STD = 0.3, np.float32([0.4, 0.5, 0.8])


def ids(n, seed=0):
    return keys.per_sample(jax.random.key(seed), jnp.arange(n))


def normals(*shape):
    return np.random.default_rng(0).normal(size=shape)


def score(denoise, x_0, steps, key_rows=None, **options):
    key_rows = ids(len(x_0)) if key_rows is None else key_rows
    return jax.jit(lambda x, k: ode_bpd(denoise, x, steps, k, **options))(jnp.asarray(x_0), key_rows)


class Pulled(NamedTuple):
    """The density of x_0 where the prior at the grid's end is pulled back along the exact flow of N(mean, var I)."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def back(cls, steps, mean, var):
        clean, noisy = laws.rows_of(steps.now, -1), laws.rows_of(steps.now, 0)
        here = np.sqrt(clean.alpha**2 * var + clean.sigma**2) / clean.alpha
        there = np.sqrt(noisy.alpha**2 * var + noisy.sigma**2)
        stretch = here / there  # of the flow, which keeps (x - alpha mean) / std
        return cls(mean - stretch * noisy.alpha * mean, stretch * np.hypot(noisy.alpha, noisy.sigma))

    def log_prob(self, x):
        return norm.logpdf(x, self.mean, self.std).sum(-1)


@pytest.mark.parametrize("name", GRIDS)
def test_gaussian_data_have_their_density_on_every_path_and_chain(name):
    """The tight law is the prior pulled back; the density of the data follows where the end is nearly the prior."""
    steps = GRIDS[name][1]
    x_0 = np.float32(MEAN + STD * normals(16, 3))
    got = score(laws.gaussian_denoiser(MEAN, STD[None]), x_0, steps, **DENSITY)
    assert got.nfe == len(steps.h)
    assert got.log_prob.dtype == jnp.float32
    np.testing.assert_allclose(got.log_prob, Pulled.back(steps, MEAN, STD**2).log_prob(x_0), atol=4e-3)
    np.testing.assert_allclose(got.bpd, -got.log_prob / 3 / np.log(2), rtol=1e-6)
    blurred = np.hypot(STD, steps.now.sigma[-1] / steps.now.alpha[-1])  # the data at the cleanest level
    np.testing.assert_allclose(got.log_prob, norm.logpdf(x_0, MEAN, blurred).sum(-1), atol=3e-2)


def correlated(dims, seed=1):
    factor = np.random.default_rng(seed).normal(size=(dims, dims)) / np.sqrt(dims)
    return np.full(dims, 0.2), 0.3 * factor @ factor.T + 0.05 * np.eye(dims)


@pytest.mark.parametrize("name", ["vp", "ddpm"])
def test_the_exact_trace_sums_over_every_value(name):
    """20 values, which no chunk divides, correlated, of two axes; and a Gaussian's density by its eigenvectors."""
    steps, (mean, covariance) = GRIDS[name][1], correlated(20)
    x_0 = np.float32(mean + normals(8, 20) @ np.linalg.cholesky(covariance).T)
    got = score(laws.correlated_denoiser(mean, covariance), x_0.reshape(8, 4, 5), steps, **DENSITY)
    variances, axes = np.linalg.eigh(covariance)
    exact = Pulled.back(steps, mean @ axes, variances).log_prob(x_0 @ axes)
    np.testing.assert_allclose(got.log_prob, exact, atol=3e-2)


def test_heun_is_of_order_two():
    x_0 = np.float32(MEAN + STD * normals(16, 3))
    errors = []
    for n in (11, 21, 41, 81):
        steps = sharper(8.0, n)
        got = score(laws.gaussian_denoiser(MEAN, STD[None]), x_0, steps, **DENSITY).log_prob
        errors.append(np.abs(got - Pulled.back(steps, MEAN, STD**2).log_prob(x_0)).mean())
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert orders.min() > 1.8
    assert orders[-1] < 2.3


def test_hutchinson_is_unbiased_and_more_probes_are_nearer():
    steps, (mean, covariance) = sharper(8.0, 40), correlated(4)
    denoise = laws.correlated_denoiser(mean, covariance)
    x_0 = np.float32(np.broadcast_to(mean + 0.3, (2048, 4)))
    exact = score(denoise, x_0[:1], steps, **DENSITY).log_prob[0]
    spread = {}
    for probes in (1, 4):
        got = score(denoise, x_0, steps, num_values=0, dequantise="none", num_probes=probes).log_prob
        spread[probes] = float(got.std())
        assert abs(got.mean() - exact) < 4 * spread[probes] / np.sqrt(len(x_0))
    assert spread[1] > 0.1
    assert 1.8 < spread[1] / spread[4] < 2.2


def test_one_probe_is_exact_where_values_do_not_depend_on_each_other():
    x_0 = np.float32(MEAN + STD * normals(16, 3))
    options = {"num_values": 0, "dequantise": "none"}
    exact, one = (
        score(laws.gaussian_denoiser(MEAN, STD[None]), x_0, sharper(8.0, 20), **options, trace=trace).log_prob
        for trace in ("exact", "hutchinson")
    )
    np.testing.assert_allclose(one, exact, atol=1e-4)


MIXTURE = [np.float32([[0.6, 0.6], [-0.5, 0.2]]), np.float32([0.2, 0.4]), np.float32([0.3, 0.7])]


def some_network(x, level):
    """A field that belongs to no data at all."""
    x_0 = expand(level.alpha, x) * (0.8 * x + 0.15 * jnp.sin(2 * x[:, ::-1] + 1))
    return Prediction(x_0, (x - expand(level.alpha, x) * x_0) / expand(level.sigma, x))


@pytest.mark.parametrize("denoise", [laws.mixture_denoiser(*MIXTURE), some_network], ids=["mixture", "no data"])
def test_densities_integrate_to_one(denoise):
    """Whatever the denoiser: a flow loses no probability."""
    axis = np.linspace(-4, 4, 101, dtype=np.float32)
    points = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    density = np.exp(np.float64(score(denoise, points, sharper(6.0, 100), **DENSITY).log_prob))
    assert abs(density.sum() * (axis[1] - axis[0]) ** 2 - 1) < 4e-3


def test_a_mixture_has_its_density():
    means, stds, weights = MIXTURE
    x_0 = np.float32(laws.mixture_samples(np.random.default_rng(0), means, stds, weights, 64))
    got = score(laws.mixture_denoiser(*MIXTURE), x_0, GRIDS["vp"][1], **DENSITY).log_prob
    exact = norm.pdf(x_0[:, None], means[None], stds[None, :, None]).prod(-1) @ weights
    np.testing.assert_allclose(got, np.log(exact), atol=2e-2)


@needs_diffrax
@pytest.mark.parametrize("name", ["vp", "ve", "edm", "flow"])
def test_the_adaptive_solver_agrees_with_gaussians(name):
    schedule, steps = GRIDS[name]
    x_0 = np.float32(MEAN + STD * normals(8, 3))
    options = DENSITY | {"solver": "dopri5", "schedule": schedule, "rtol": 1e-5, "atol": 1e-5}
    got = score(laws.gaussian_denoiser(MEAN, STD[None]), x_0, steps, **options)
    np.testing.assert_allclose(got.log_prob, Pulled.back(steps, MEAN, STD**2).log_prob(x_0), atol=5e-4)


@needs_diffrax
def test_the_adaptive_solver_agrees_with_a_fine_grid_and_counts_its_evaluations():
    x_0 = np.float32(laws.mixture_samples(np.random.default_rng(0), *MIXTURE, 12))
    fine = score(laws.mixture_denoiser(*MIXTURE), x_0, sharper(10.0, 800), **DENSITY)
    seen = []

    def counted(x, level):
        jax.debug.callback(lambda: seen.append(1))
        return laws.mixture_denoiser(*MIXTURE)(x, level)

    options = DENSITY | {"schedule": VP, "solver": "tsit5"}
    got = score(counted, x_0, sharper(10.0, 2), **options)
    np.testing.assert_allclose(got.log_prob, fine.log_prob, atol=4e-3)
    assert len(set(got.nfe.tolist())) > 1, "each row takes steps of its own"
    for row in range(2):
        seen.clear()
        alone = score(counted, x_0[row : row + 1], sharper(10.0, 2), ids(12)[row : row + 1], **options)
        jax.effects_barrier()
        assert len(seen) == alone.nfe[0]
        assert abs(int(alone.nfe[0]) - int(got.nfe[row])) <= 6, "rounding may refuse a step"
        np.testing.assert_allclose(alone.log_prob[0], got.log_prob[row], atol=1e-3)


@needs_diffrax
def test_samples_that_do_not_arrive_are_nan(capfd):
    x_0 = np.float32(normals(4, 2))
    x_0[0] = np.nan
    options = DENSITY | {"schedule": VP, "solver": "bosh3", "max_steps": 100, "rtol": 1e-2, "atol": 1e-2}
    got = score(laws.mixture_denoiser(*MIXTURE), x_0, sharper(6.0, 2), **options)
    jax.effects_barrier()
    assert np.isnan(got.bpd[0])
    assert np.isfinite(got.bpd[1:]).all()
    assert "1 of 4 samples did not arrive in max_steps and are NaN" in capfd.readouterr().out


NUM_VALUES = 17
VALUES = np.linspace(-1, 1, NUM_VALUES)
BIN = VALUES[1] - VALUES[0]


def bounds(dequantise, steps, denoise, draws=512):
    """(mean bound of each value, its standard error) over many draws of a single pixel."""
    x_0 = np.float32(np.repeat(VALUES, draws))[:, None]
    got = score(denoise, x_0, steps, num_values=NUM_VALUES, dequantise=dequantise, trace="exact")
    log_prob = np.float64(got.log_prob).reshape(NUM_VALUES, draws)
    return log_prob.mean(1), log_prob.std(1) / np.sqrt(draws)


def test_uniform_noise_bounds_the_mass_of_the_bins():
    """The mean is E[log p(x_0 + u)] + log(delta) by quadrature, which lies below the log of the bin's mass."""
    mean, std = 0.1, 0.15
    steps = sharper(9.0, 100)
    density = Pulled.back(steps, mean, std**2)
    got, error = bounds("uniform", steps, laws.gaussian_denoiser(mean, std))
    u = BIN * ((np.arange(2000) + 0.5) / 2000 - 0.5)
    expected = norm.logpdf(VALUES[:, None] + u, density.mean, density.std).mean(1) + np.log(BIN)
    assert (np.abs(got - expected) < 4 * error + 1e-2).all()
    edges = norm.cdf(np.append(VALUES - BIN / 2, 1 + BIN / 2), density.mean, density.std)
    mass = np.diff(edges)
    assert (expected < np.log(mass)).all()
    assert (got < np.log(mass) + 4 * error + 1e-2).all()


@pytest.mark.parametrize("log_snr", [2.0, 6.0, 9.0])
def test_the_process_noise_bounds_the_mass_that_model_and_decoder_give_a_value(log_snr):
    """For sigma from five bins to a tenth of one: P(v) = integral of p(x) P(v | x), which sums to 1."""
    mean, std = 0.1, 0.3
    steps = sharper(log_snr, 100)
    clean, density = laws.rows_of(steps.now, -1), Pulled.back(steps, mean, std**2)
    got, error = bounds("variational", steps, laws.gaussian_denoiser(mean, std))
    ratio = clean.sigma / clean.alpha
    x = np.linspace(-4, 4, 160_001)  # x / alpha
    likelihood = norm.pdf(x[:, None], VALUES, ratio) + 1e-300
    decoder = likelihood / likelihood.sum(1, keepdims=True)
    mass = np.trapezoid(norm.pdf(x, density.mean, density.std)[:, None] * decoder, x, axis=0)
    elbo = norm.logpdf(x, density.mean, density.std)[:, None] - np.log(likelihood.sum(1, keepdims=True))
    expected = np.trapezoid(likelihood * elbo, x, axis=0)
    assert abs(mass.sum() - 1) < 1e-3
    assert (expected < np.log(mass)).all()
    assert (np.abs(got - expected) < 4 * error + 1e-2).all()


def test_a_network_that_knows_the_values_reaches_their_entropy_by_the_process_noise():
    """Discrete data with their exact denoiser: bits tend to -log2 P(v), which uniform noise cannot know."""
    weights = np.exp(-0.5 * np.arange(NUM_VALUES) / 4)
    weights /= weights.sum()
    denoise = laws.mixture_denoiser(np.float32(VALUES)[:, None], np.zeros(NUM_VALUES, np.float32), np.float32(weights))
    steps = sharper(8.5, 400)  # sigma is 0.014, a ninth of the distance of two values
    got, error = bounds("variational", steps, denoise, draws=64)
    np.testing.assert_allclose(got, np.log(weights), atol=2e-2)
    assert (error < 1e-2).all()
    loose, _ = bounds("uniform", steps, denoise, draws=64)
    assert (loose < np.log(weights) - 1).all()


@pytest.mark.parametrize("solver", ["heun", pytest.param("tsit5", marks=needs_diffrax)])
def test_a_row_depends_on_its_key_alone(solver):
    x_0 = np.float32(np.random.default_rng(2).choice(VALUES, (16, 2)))
    rows, options = ids(16), {"num_values": NUM_VALUES, "solver": solver, "num_probes": 2}
    options |= {} if solver == "heun" else {"schedule": VP}
    steps, denoise = sharper(6.0, 20), laws.mixture_denoiser(*MIXTURE)
    whole = score(denoise, x_0, steps, rows, **options).bpd
    part = score(denoise, x_0[3:8], steps, rows[3:8], **options).bpd
    np.testing.assert_allclose(part, whole[3:8], atol=1e-4 if solver == "heun" else 2e-3)
    split = devices.split(devices.data_mesh())
    spread = score(denoise, devices.put(x_0, split), steps, jax.device_put(rows, split), **options).bpd
    np.testing.assert_allclose(spread, whole, atol=1e-4 if solver == "heun" else 2e-3)
    other = score(denoise, x_0, steps, ids(16, seed=1), **options).bpd
    assert np.abs(other - whole).min() > 1e-5


def test_a_grid_may_be_traced():
    x_0 = np.float32(normals(8, 2))
    denoise, steps = laws.mixture_denoiser(*MIXTURE), GRIDS["flow"][1]
    known = score(denoise, x_0, steps, **DENSITY).log_prob
    traced = jax.jit(lambda steps: ode_bpd(denoise, jnp.asarray(x_0), steps, ids(8), **DENSITY))
    np.testing.assert_allclose(traced(steps).log_prob, known, atol=2e-4)


def test_a_self_conditioned_denoiser_is_told_nothing():
    def bind(x_0_hat):
        return lambda x, level: laws.mixture_denoiser(*MIXTURE)(x + 0.5 * x_0_hat, level)

    x_0, steps = np.float32(normals(8, 2)), sharper(6.0, 20)
    got = score(SelfConditioned(bind), x_0, steps, **DENSITY).bpd
    np.testing.assert_array_equal(got, score(laws.mixture_denoiser(*MIXTURE), x_0, steps, **DENSITY).bpd)


def test_layers_with_a_rule_for_reverse_mode_alone_are_no_obstacle():
    @jax.custom_vjp
    def layer(x):
        return jnp.tanh(x)

    layer.defvjp(lambda x: (layer(x), x), lambda x, grad: (grad / jnp.cosh(x) ** 2,))

    def network(layer):
        def denoise(x, level):
            x_0 = layer(x)
            return Prediction(x_0, (x - level.alpha * x_0) / level.sigma)

        return denoise

    x_0, steps = np.float32(normals(4, 2)), sharper(4.0, 10)
    got, expected = (score(network(each), x_0, steps, **DENSITY).log_prob for each in (layer, jnp.tanh))
    np.testing.assert_allclose(got, expected, atol=1e-5)


X_0 = np.zeros((2, 3), np.float32)
DIGITS = {"num_values": 17}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_values": 0}, "num_values=0, dequantise='uniform'; expected .* num_values=0 with 'none'"),
        ({"num_values": 1}, "got num_values=1, expected at least 2"),
        (DIGITS | {"dequantise": "none"}, "dequantise='none'; expected 'uniform' or 'variational'"),
        (DIGITS | {"dequantise": "flow++"}, "dequantise='flow\\+\\+'"),
        (DIGITS | {"trace": "hutch++"}, "got trace='hutch\\+\\+', .*expected 'hutchinson'"),
        (DIGITS | {"num_probes": 0}, "num_probes=0; expected .* at least 1 probe"),
        (DIGITS | {"solver": "rk4"}, "got solver='rk4', expected heun or, adaptive, one of bosh3, dopri5"),
        (DIGITS | {"solver": "tsit5"}, "solver='tsit5' follows a continuous path: pass schedule="),
        (DIGITS | {"num_values": 256}, "x_0 holds values other than the 256 evenly spread over"),
    ],
)
def test_options_that_do_not_exist(options, words):
    with pytest.raises(ValueError, match=words):
        ode_bpd(some_network, X_0, sharper(6.0, 10), ids(2), **options)


@needs_diffrax
def test_chains_are_not_for_adaptive_solvers():
    chain, no_levels = schedules.linear_beta(), "solver='dopri5' follows .* no levels in between: use solver=heun"
    for schedule, steps, words in (
        (chain, all_steps(chain), no_levels),
        (None, all_steps(chain), no_levels),
        (VP, sharper(6.0, 10, schedules.vp_linear(0.2)), "solver='dopri5' got another schedule than this grid's"),
    ):
        with pytest.raises(ValueError, match=words):
            ode_bpd(some_network, X_0, steps, ids(2), num_values=17, solver="dopri5", schedule=schedule)


def test_grids_that_do_not_rise():
    steps = sharper(6.0, 10)
    backwards = Step(*(laws.rows_of(part, slice(None, None, -1)) for part in steps[:3]))
    for wrong in (backwards, laws.rows_of(steps, slice(0, 1))):
        with pytest.raises(ValueError, match="expected at least two, noisiest first"):
            ode_bpd(some_network, X_0, wrong, ids(2), num_values=17)
    with pytest.raises(ValueError, match="got a resampled grid"):
        ode_bpd(some_network, X_0, resampled(steps, 2, 2), ids(2), num_values=17)
