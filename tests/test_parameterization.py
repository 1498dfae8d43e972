import inspect

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import gaussian, lookup, parameterization, schedules
from diffusion.parameterization import Parameterization
from diffusion.schedules import cosine_alpha_bar, linear_beta
from tests import laws

FACTORIES = lookup.components(parameterization, Parameterization)


def make(name, schedule):
    function = FACTORIES[name]
    return function(schedule) if "schedule" in inspect.signature(function).parameters else function()


def test_all_are_found():
    assert set(FACTORIES) == {"eps", "x_0", "v", "score", "mean", "edm", "flow"}


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


@pytest.mark.parametrize("name", [name for name in FACTORIES if name != "mean"])
@pytest.mark.parametrize(
    "path", [schedules.edm(), schedules.flow(), schedules.sub_vp_linear()], ids=["edm", "flow", "sub"]
)
def test_all_but_the_mean_fit_every_path(name, path):
    param, rng = make(name, path), np.random.default_rng(0)
    level = path.level(np.array([0.001, 0.3, 0.9]) * path.end)
    x_0, eps = rng.normal(size=(2, 3, 4))
    x_t = gaussian.diffuse(x_0, eps, level)
    prediction = param.predict(param.target(x_0, eps, level), x_t, level)
    np.testing.assert_allclose(prediction.x_0, x_0, atol=1e-8)
    np.testing.assert_allclose(prediction.eps, eps, atol=1e-8)


def test_edm_is_its_papers_table_and_keeps_unit_variance():
    sigma = np.array([0.002, 0.5, 80.0])
    level, param = schedules.edm().level(sigma), parameterization.edm()
    c_in, c_skip, c_out = param.coefs(level)
    np.testing.assert_allclose(c_in, 1 / np.sqrt(sigma**2 + 0.25), rtol=1e-12)
    np.testing.assert_allclose(c_skip, 0.25 / (sigma**2 + 0.25), rtol=1e-12)
    np.testing.assert_allclose(c_out, sigma * 0.5 / np.sqrt(sigma**2 + 0.25), rtol=1e-12)
    rng = np.random.default_rng(0)
    x_0, eps = 0.5 * rng.normal(size=(3, 100_000)), rng.normal(size=(3, 100_000))
    np.testing.assert_allclose(param.target(x_0, eps, level).std(1), 1, atol=0.01)
    np.testing.assert_allclose((c_in[:, None] * gaussian.diffuse(x_0, eps, level)).std(1), 1, atol=0.01)


def test_flow_on_straight_lines_is_the_velocity():
    x_0, eps = np.random.default_rng(3).normal(size=(2, 1, 5))
    path = schedules.flow()
    rate = (gaussian.diffuse(x_0, eps, path.level(0.6)) - gaussian.diffuse(x_0, eps, path.level(0.4))) / 0.2
    np.testing.assert_allclose(parameterization.flow().target(x_0, eps, path.level(0.5)), rate, rtol=1e-9)


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
