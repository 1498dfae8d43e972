"""The bound of a continuous path against closed forms: Gaussian data whose exact denoiser is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import bound, continuous_bound, schedules, sde
from diffusion.gaussian import diffuse
from diffusion.keys import per_sample
from diffusion.learned_schedules import learned_log_snr
from diffusion.likelihood import continuous_vlb_bpd
from tests import laws

STD = 0.6
DENOISE = laws.gaussian_denoiser(0.0, STD)
ENTROPY = 0.5 * np.log(2 * np.pi * np.e * STD**2)  # nats
FIRST, LAST = 14.0, -8.0
X_0 = jnp.array([[STD], [STD], [-STD], [-STD]])  # with eps they have the second moments of data and noise
EPS = jnp.array([[1.0], [-1.0], [1.0], [-1.0]])
LEARNED = learned_log_snr(log_snr_max=15.0, log_snr_min=-10.0, hidden=64)
PATHS = {
    "vp_linear": schedules.vp_linear(),
    "flow": schedules.flow(),
    "linear": schedules.from_log_snr(lambda t: 18 - 30 * t),
    "edm": schedules.edm(),
    "ve_geometric": schedules.ve_geometric(sigma_min=1e-4),
    "learned": LEARNED.at(LEARNED.init()),
}


def integral(first, last, std=STD):
    """1/2 int snr s^2 / (1 + snr s^2) d log_snr, nats: half the mean squared error of the best eps_hat."""
    return 0.5 * (np.log1p(std**2 * np.exp(first)) - np.log1p(std**2 * np.exp(last)))


def over_times(path, num_terms=4000):
    """The diffusion term of the design points by the trapezoidal rule over the path's own times."""
    t = jnp.asarray(path.time_at(np.linspace(FIRST, LAST, num_terms)), jnp.float32)
    span = t[-1] - t[0]

    def at(t):
        level = path.level(t)
        rate = -span * sde.log_snr_rate(path, t)
        return continuous_bound.diffusion(EPS, DENOISE(diffuse(X_0, EPS, level), level).eps, rate).mean()

    values = jax.lax.map(at, t)
    return float(((values[1:] + values[:-1]) / 2 * jnp.diff(t)).sum() / span)


@pytest.mark.parametrize("name", PATHS)
def test_a_path_enters_through_its_ends_alone(name):
    assert over_times(PATHS[name]) == pytest.approx(integral(FIRST, LAST), abs=1e-4)


def test_with_the_exact_denoiser_the_bound_is_the_entropy_and_the_mismatch_of_the_prior():
    path = PATHS["linear"]
    prior = float(bound.prior(X_0, path.level(path.time_at(jnp.float32(LAST)))).mean())
    reconstruction = float(continuous_bound.reconstruction(X_0, EPS, FIRST, 0).mean())
    a = 1 / (1 + np.exp(-LAST))  # x_end in units of sqrt(alpha^2 + sigma^2) is N(0, a s^2 + 1 - a) in truth
    variance = a * STD**2 + 1 - a
    mismatch = 0.5 * (variance - 1 - np.log(variance))
    assert prior + reconstruction + over_times(PATHS["linear"]) == pytest.approx(ENTROPY + mismatch, abs=1e-4)


@pytest.mark.parametrize("name", PATHS)
def test_the_estimate_is_unbiased_on_every_path(name):
    """The mean over 512 keys of a few terms, within four standard errors of the closed form."""
    x_0 = STD * jnp.sign(jax.random.normal(jax.random.key(0), (512, 256)))
    keys = per_sample(jax.random.key(1), jnp.arange(512))
    got = jax.jit(
        lambda: continuous_vlb_bpd(DENOISE, x_0, PATHS[name], keys, num_values=0, start=FIRST, num_terms=16)
    )()
    last = max(float(PATHS[name].level(jnp.float32(PATHS[name].end)).log_snr), -20.0)
    error = float(got.diffusion.std()) / 512**0.5
    assert float(got.diffusion.mean()) == pytest.approx(integral(FIRST, last) / np.log(2), abs=4 * error)
    assert error < 0.02
    assert float(got.total.mean()) == pytest.approx(ENTROPY / np.log(2), abs=4 * error + 1e-3)
    np.testing.assert_allclose(got.total, got.prior + got.reconstruction + got.diffusion, rtol=1e-6)


@pytest.mark.parametrize("sigma_min", [0.02, 0.01, 0.3])
def test_a_draw_of_the_least_noisy_level_itself_is_no_clean_data(sigma_min, monkeypatch):
    """There ve_geometric's time rounds to 0, which is clean; the term is that of a level close by."""
    x_0, keys = 0.3 * jnp.ones((2, 3)), per_sample(jax.random.key(1), jnp.arange(2))
    path = schedules.ve_geometric(sigma_min=sigma_min)
    found = []
    for share in (0.0, 1e-4):
        monkeypatch.setattr(jax.random, "uniform", lambda key, share=share: jnp.float32(share))
        found.append(continuous_vlb_bpd(DENOISE, x_0, path, keys, num_values=0, num_terms=1).diffusion)
    assert np.isfinite(found[0]).all()
    np.testing.assert_allclose(found[0], found[1], rtol=1e-2)


def test_rows_depend_on_their_own_key_alone():
    x_0 = 0.3 * jnp.ones((4, 3))
    keys = per_sample(jax.random.key(1), jnp.arange(4))
    estimate = jax.jit(lambda x, keys: continuous_vlb_bpd(DENOISE, x, PATHS["flow"], keys, num_values=17, num_terms=4))
    whole, alone = estimate(x_0, keys), estimate(x_0[2:3], keys[2:3])
    for column, row in zip(whole, alone, strict=True):
        np.testing.assert_allclose(column[2:3], row, rtol=1e-5, atol=1e-6)
    assert len(np.unique(whole.diffusion)) == 4


@pytest.mark.parametrize("num_values", [2, 17, 256])
@pytest.mark.parametrize("log_snr", [-3.0, 3.0, 14.0])
def test_the_decoder_sums_to_one(num_values, log_snr):
    """Over all values that the pixel may have, whatever x_1 is: eps is then (x_1 - alpha v) / sigma."""
    values = np.linspace(-1, 1, num_values)
    for x_1 in (-1.3, -0.2, 0.9):  # in units of alpha
        eps = (x_1 - values) * np.exp(log_snr / 2)
        rows = [jnp.asarray(rows, jnp.float32)[:, None] for rows in (values, eps)]
        nats = continuous_bound.reconstruction(*rows, log_snr, num_values)
        assert float(jnp.exp(-nats).sum()) == pytest.approx(1, abs=3e-3 if log_snr > 10 else 1e-5)


def test_the_data_begin_where_their_decoder_costs_almost_nothing():
    assert continuous_bound.least_noisy(256) == pytest.approx(13.28, abs=0.005)
    assert continuous_bound.least_noisy(17) == pytest.approx(7.74, abs=0.005)
    for num_values in (17, 256):
        x_0 = jnp.zeros((1, 4096)) + np.float32(np.linspace(-1, 1, num_values)[num_values // 2])
        eps = jax.random.normal(jax.random.key(0), x_0.shape)
        nats = continuous_bound.reconstruction(x_0, eps, continuous_bound.least_noisy(num_values), num_values)
        assert 1e-4 < float(nats.mean()) < 0.02


def test_a_path_that_jumps_begins_at_its_own_least_noise():
    keys = per_sample(jax.random.key(1), jnp.arange(2))
    for sigma in (0.02, 1e-4):  # above and below 1e-3, where continuous data begin elsewhere
        path = schedules.ve_geometric(sigma_min=sigma)
        got = continuous_vlb_bpd(DENOISE, 0.3 * jnp.ones((2, 3)), path, keys, num_values=0, num_terms=1)
        expected = 0.5 * (np.log(2 * np.pi * np.e) + 2 * np.log(sigma)) / np.log(2)
        np.testing.assert_allclose(got.reconstruction, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"schedule": schedules.linear_beta(10)}, "a chain of 10 steps, whose bound has as many terms: use vlb_bpd"),
        ({"schedule": schedules.ve_geometric(), "start": 9.0}, "got start=9, expected a log-SNR above -9.21"),
        ({"start": -30.0}, "expected a log-SNR above -20"),
        ({"num_values": 1}, "got num_values=1, expected at least 2"),
        ({"num_terms": 0}, "got num_terms=0"),
    ],
)
def test_errors(options, words):
    options = {"schedule": schedules.flow(), "num_values": 17} | options
    with pytest.raises(ValueError, match=words):
        continuous_vlb_bpd(DENOISE, jnp.zeros((1, 2)), keys=per_sample(jax.random.key(0), jnp.arange(1)), **options)
