"""Each weight, for each parameterization, against its formula on the error that its paper names."""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import gaussian, lookup, parameterization, schedules, weights
from diffusion.parameterization import Parameterization
from diffusion.schedules import cosine_alpha_bar, linear_beta
from tests import laws

PARAMETERIZATIONS = lookup.components(parameterization, Parameterization)
SCHEDULE = linear_beta()
T = np.array([1, 2, 50, 500, 1000])


def weighted_error(weight, name):
    """(weight x squared error of the network, error of x_0 it means, error of eps, SNR) at the times T."""
    make = PARAMETERIZATIONS[name]
    param = make(SCHEDULE) if "schedule" in inspect.signature(make).parameters else make()
    level, rng = SCHEDULE.level(T), np.random.default_rng(0)
    x_0, eps, error = rng.normal(size=(3, len(T)))
    x_t = gaussian.diffuse(x_0, eps, level)
    moved = param.predict(param.target(x_0, eps, level) + error, x_t, level)
    return weight(level, param) * error**2, moved.x_0 - x_0, moved.eps - eps, np.exp(level.log_snr), error


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_constant_is_the_plain_error_of_the_network(name):
    got, _, _, _, error = weighted_error(weights.constant(), name)
    np.testing.assert_allclose(got, error**2)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_min_snr_is_capped_on_the_error_of_x_0(name):
    got, x_0, _, snr, _ = weighted_error(weights.min_snr(gamma=5.0), name)
    np.testing.assert_allclose(got, np.minimum(snr, 5) * x_0**2, rtol=1e-6)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_p2_is_on_the_error_of_eps(name):
    got, _, eps, snr, _ = weighted_error(weights.p2(gamma=0.5, k=2.0), name)
    np.testing.assert_allclose(got, (2 + snr) ** -0.5 * eps**2, rtol=1e-6)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_vlb_is_the_kl_of_the_two_reverse_steps(name):
    """T times KL(q(x_{t-1} | x_t, x_0) || p), both with the posterior's variance (DDPM eq. 8)."""
    got, x_0, _, _, _ = weighted_error(weights.vlb(SCHEDULE), name)
    tables = laws.ddpm_tables(laws.linear_betas())
    t = T[1:]
    log_var = np.log(tables.posterior_variance[t])
    kl = gaussian.kl(0.0, log_var, tables.posterior_x_0[t] * x_0[1:], log_var)
    np.testing.assert_allclose(got[1:], 1000 * kl, rtol=1e-6)
    assert got[0] == pytest.approx(1000 * x_0[0] ** 2 / (2 * 1e-4), rel=1e-9), "t = 1: variance beta_1"


@pytest.mark.parametrize("path", [schedules.vp_linear(), schedules.flow()], ids=["vp", "flow"])
def test_vlb_of_a_path_is_the_limit_of_its_chains(path):
    t, n = np.array([0.2, 0.5, 0.8]), 10_000
    snr = lambda t: np.exp(path.level(t).log_snr)
    limit = n * (snr(t - 0.5 / n) - snr(t + 0.5 / n)) / 2
    got = weights.vlb(path)(path.level(jnp.asarray(t)), parameterization.x_0())
    np.testing.assert_allclose(got, limit, rtol=1e-4)


def test_edm_weight_is_constant_on_the_network_of_edm():
    """lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 on x_0 (Karras et al. 2022, table 1)."""
    sigma = np.array([0.01, 1.0, 50.0])
    c_out = parameterization.edm().coefs(schedules.edm().level(sigma))[2]
    np.testing.assert_allclose(1 / c_out**2, (sigma**2 + 0.25) / (sigma * 0.5) ** 2, rtol=1e-12)


@pytest.mark.parametrize(
    "weight", [weights.constant(), weights.min_snr(), weights.p2(), weights.vlb(cosine_alpha_bar())]
)
def test_float32_stays_finite_and_right_over_the_whole_cosine_chain(weight):
    schedule, t = cosine_alpha_bar(), np.arange(1, 1001)
    for param in (parameterization.eps(), parameterization.x_0(), parameterization.v()):
        exact, rounded = weight(schedule.level(t), param), weight(schedule.level(jnp.asarray(t)), param)
        np.testing.assert_allclose(rounded, exact, rtol=2e-5)


def test_known_values_of_eps_weights():
    """On eps: min-SNR is min(SNR, gamma) / SNR (Hang et al. 2023), which is 1 where the SNR is low."""
    level = SCHEDULE.level(T)
    got = weights.min_snr()(level, parameterization.eps())
    np.testing.assert_allclose(got, np.minimum(1, 5 / np.exp(level.log_snr)), rtol=1e-9)
    vlb = weights.vlb(SCHEDULE)(level, parameterization.eps()) / 1000
    assert vlb[0] == pytest.approx(1 / (2 * (1 - 1e-4)), rel=1e-9)  # beta^2 / (2 beta alpha (1 - abar)) at t = 1


def test_errors():
    with pytest.raises(ValueError, match="gamma=0.0, expected a positive number"):
        weights.min_snr(gamma=0.0)
