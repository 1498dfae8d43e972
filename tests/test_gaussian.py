import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import gaussian, lookup, schedules
from diffusion.schedules import Schedule, linear_beta
from diffusion.types import NoiseLevel, Step, float32
from tests import laws

SCHEDULES = {n: f() for n, f in lookup.components(schedules, Schedule).items() if n != "from_betas"}
SCHEDULES["ve_ladder"] = schedules.ve_ladder(1000, 0.01, 10.0)


def time(schedule, thousandths):
    """The time at that many thousandths of a schedule: a step of a chain of 1000, a number on a path."""
    return thousandths if schedule.num_steps else thousandths / 1000 * schedule.end


def test_one_forward_step_is_ddpm_eq_2():
    tables = laws.ddpm_tables(laws.linear_betas())
    t = np.arange(1, 1001)
    scale, variance = gaussian.forward_kernel(laws.step_at(linear_beta(), t, t - 1))
    np.testing.assert_allclose(scale, np.sqrt(1 - tables.betas[1:]), rtol=1e-12)
    np.testing.assert_allclose(variance, tables.betas[1:], rtol=1e-10)


@pytest.mark.parametrize("name", SCHEDULES)
def test_two_forward_steps_make_one(name):
    """q(t | s) o q(s | 0) = q(t | 0), for any s < t."""
    schedule = SCHEDULES[name]
    for s, t in [(1, 2), (3, 700), (999, 1000), (1, 1000)]:
        s, t = time(schedule, s), time(schedule, t)
        scale, variance = gaussian.forward_kernel(laws.step_at(schedule, t, s))
        early, late = schedule.level(s), schedule.level(t)
        assert scale * early.alpha == pytest.approx(late.alpha, rel=1e-12)
        assert scale**2 * early.sigma**2 + variance == pytest.approx(late.sigma**2, rel=1e-10)


def test_posterior_is_ddpm_eq_7_in_float64_and_in_float32():
    tables, t = laws.ddpm_tables(laws.linear_betas()), np.arange(1, 1001)
    exact = laws.step_at(linear_beta(), t, t - 1)
    ones, zeros = np.ones(1000), np.zeros(1000)
    for step, tolerance in [(exact, 1e-10), (float32(exact), 5e-7)]:
        one, zero = (ones, zeros) if step is exact else (jnp.ones(1000), jnp.zeros(1000))
        of_x_0, small, large = gaussian.posterior(one, zero, step)
        of_x_t, _, _ = gaussian.posterior(zero, one, step)
        np.testing.assert_allclose(of_x_0, tables.posterior_x_0[1:], rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(of_x_t, tables.posterior_x_t[1:], rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(small, tables.posterior_variance[1:], rtol=10 * tolerance)
        np.testing.assert_allclose(large, tables.betas[1:], rtol=10 * tolerance)


@pytest.mark.parametrize("name", SCHEDULES)
def test_posterior_is_bayes_rule_by_quadrature(name):
    """The moments of prior(x_s) likelihood(x_t | x_s), integrated on a line."""
    schedule, x_0, x_t = SCHEDULES[name], 0.7, -0.4
    step = laws.step_at(schedule, time(schedule, 600), time(schedule, 350))
    x_s = np.linspace(-12, 12, 200_001) * max(1, step.to.sigma)
    scale, variance = gaussian.forward_kernel(step)
    log_density = -((x_s - step.to.alpha * x_0) ** 2) / (2 * step.to.sigma**2) - (x_t - scale * x_s) ** 2 / (
        2 * variance
    )
    density = np.exp(log_density - log_density.max())
    mean = (x_s * density).sum() / density.sum()
    spread = ((x_s - mean) ** 2 * density).sum() / density.sum()
    got_mean, got_variance, _ = gaussian.posterior(np.array([x_0]), np.array([x_t]), step)
    assert got_mean[0] == pytest.approx(mean, rel=1e-8)
    assert got_variance == pytest.approx(spread, rel=1e-8)


def test_ends_are_exact():
    clean = laws.step_at(linear_beta(), 1, 0)
    mean, small, large = gaussian.posterior(np.array([0.3]), np.array([9.0]), clean)
    assert (mean[0], small) == (0.3, 0.0)
    assert large == pytest.approx(1e-4, rel=1e-12)
    noise = NoiseLevel(1.0, np.float64(0.0), np.float64(1.0), np.float64(-np.inf))
    some = linear_beta().level(500)
    mean, small, _ = gaussian.posterior(np.array([0.3]), np.array([9.0]), Step(noise, some, np.float64(np.inf)))
    assert mean[0] == pytest.approx(some.alpha * 0.3)
    assert small == pytest.approx(some.sigma**2)


def test_conversions_are_inverse_and_velocity_is_the_rotation():
    rng = np.random.default_rng(0)
    x_0, eps = rng.normal(size=(2, 5, 4, 3))
    level = linear_beta().level(np.array([1, 10, 300, 900, 1000]))
    x_t = gaussian.diffuse(x_0, eps, level)
    np.testing.assert_allclose(gaussian.x_0_from_eps(x_t, eps, level), x_0, atol=1e-12)
    np.testing.assert_allclose(gaussian.eps_from_x_0(x_t, x_0, level), eps, atol=1e-12)
    v = gaussian.velocity(x_0, eps, level)
    alpha, sigma = (c.reshape(5, 1, 1) for c in (level.alpha, level.sigma))
    np.testing.assert_allclose(alpha * x_t - sigma * v, x_0, atol=1e-12)
    np.testing.assert_allclose(sigma * x_t + alpha * v, eps, atol=1e-12)


def test_score_is_the_gradient_of_the_log_density():
    level, x_0, x_t, d = linear_beta().level(400), 0.5, 0.2, 1e-5
    log_q = lambda x: -((x - level.alpha * x_0) ** 2) / (2 * level.sigma**2)
    eps = gaussian.eps_from_x_0(np.array([x_t]), np.array([x_0]), level)
    assert gaussian.score(eps, level)[0] == pytest.approx((log_q(x_t + d) - log_q(x_t - d)) / (2 * d), rel=1e-8)


def test_kl_by_quadrature_and_at_equality():
    x = np.linspace(-30, 30, 400_001)
    log_density = lambda mean, log_var: -0.5 * (np.log(2 * np.pi) + log_var + (x - mean) ** 2 * np.exp(-log_var))
    p, q = log_density(0.3, -0.4), log_density(-1.1, 0.9)
    integral = (np.exp(p) * (p - q)).sum() * (x[1] - x[0])
    assert gaussian.kl(0.3, -0.4, -1.1, 0.9) == pytest.approx(integral, rel=1e-9)
    assert gaussian.kl(jnp.float32(0.3), jnp.float32(-9.0), jnp.float32(0.3), jnp.float32(-9.0)) == 0
