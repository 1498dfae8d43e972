import inspect

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import gaussian, lookup, parameterization
from diffusion.parameterization import Parameterization
from diffusion.schedules import cosine_alpha_bar, linear_beta
from tests import laws

FACTORIES = lookup.components(parameterization, Parameterization)


def make(name, schedule):
    function = FACTORIES[name]
    return function(schedule) if "schedule" in inspect.signature(function).parameters else function()


def test_all_are_found():
    assert set(FACTORIES) == {"eps", "x_0", "v", "score", "mean"}


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("schedule", [linear_beta(), cosine_alpha_bar(100)], ids=["linear", "cosine"])
def test_a_network_that_hits_its_target_predicts_x_0_and_eps(name, schedule):
    param, rng = make(name, schedule), np.random.default_rng(0)
    t = np.array([1, 2, schedule.num_steps // 2, schedule.num_steps - 1, schedule.num_steps])
    level = schedule.level(t)
    x_0, eps = rng.normal(size=(2, 5, 4, 3))
    x_t = gaussian.diffuse(x_0, eps, level)
    prediction = param.predict(param.target(x_0, eps, level), x_t, level)
    np.testing.assert_allclose(prediction.x_0, x_0, atol=2e-9)
    np.testing.assert_allclose(prediction.eps, eps, atol=2e-9)


@pytest.mark.parametrize("name", FACTORIES)
def test_an_error_of_the_network_reaches_x_0_through_c_out(name):
    schedule, rng = linear_beta(), np.random.default_rng(1)
    param, level = make(name, schedule), schedule.level(np.array([1, 20, 500]))
    x_0, eps, error = rng.normal(size=(3, 3, 7))
    x_t, target = gaussian.diffuse(x_0, eps, level), param.target(x_0, eps, level)
    c_out = param.coefs(level)[2]
    moved = param.predict(target + error, x_t, level)
    np.testing.assert_allclose(moved.x_0 - x_0, c_out[:, None] * error, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(
        gaussian.diffuse(moved.x_0, moved.eps, level), x_t, atol=1e-8, err_msg="x_0 and eps must stay consistent"
    )


@pytest.mark.parametrize("name", FACTORIES)
def test_float32_on_the_device_agrees_with_float64(name):
    schedule, t = linear_beta(), np.array([1, 2, 100, 999, 1000])
    param = make(name, schedule)
    for exact, rounded in zip(param.coefs(schedule.level(t)), param.coefs(schedule.level(jnp.asarray(t))), strict=True):
        assert rounded.dtype == jnp.float32
        np.testing.assert_allclose(rounded, exact, rtol=1e-6, atol=1e-7)


def test_the_mean_is_ddpm_mu_tilde():
    tables, schedule = laws.ddpm_tables(laws.linear_betas()), linear_beta()
    t = np.array([1, 2, 500, 1000])
    x_0, eps = np.random.default_rng(2).normal(size=(2, 4))
    level = schedule.level(t)
    x_t = gaussian.diffuse(x_0, eps, level)
    expected = tables.posterior_x_0[t] * x_0 + tables.posterior_x_t[t] * x_t
    np.testing.assert_allclose(parameterization.mean(schedule).target(x_0, eps, level), expected, rtol=1e-9)


def test_the_network_is_told_t():
    level = linear_beta().level(np.array([1, 1000]))
    np.testing.assert_array_equal(parameterization.eps().cond(level), [1, 1000])
