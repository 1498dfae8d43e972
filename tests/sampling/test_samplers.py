"""Laws that every sampler keeps, driven by denoisers in closed form."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import keys, lookup, sampling
from diffusion.sampling.ancestral import ancestral
from diffusion.sampling.ddim import ddim
from diffusion.sampling.grids import all_steps, strided, through
from diffusion.sampling.loop import sample
from diffusion.sampling.sampler import Sampler
from diffusion.schedules import cosine_alpha_bar, linear_beta
from diffusion.types import Prediction, SelfConditioned
from tests import laws

SAMPLERS = {name: make() for name, make in lookup.components(sampling, Sampler).items()}
SAMPLERS |= {"ancestral small": ancestral("small"), "ddim(0.5)": ddim(0.5), "ddim(1)": ddim(1.0)}
MEAN, STD = 0.3, 0.5


def noise(n, shape=(2,), seed=0):
    ids = keys.per_sample(jax.random.key(seed), jnp.arange(n))
    return keys.normal(ids, shape), keys.per_sample(jax.random.key(seed + 1), jnp.arange(n))


def test_samplers_are_found_by_name():
    assert {"ancestral", "ddim"} <= set(lookup.components(sampling, Sampler))
    assert all(inspect.signature(make).parameters for make in lookup.components(sampling, Sampler).values())


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("num_steps", [1, 10, 1000])
class TestEverySampler:
    def test_a_perfect_denoiser_lands_on_x_0(self, name, num_steps):
        x_T, ids = noise(4)
        target = jnp.array([0.25, -0.75])
        x = sample(SAMPLERS[name], laws.perfect_denoiser(target), x_T, strided(linear_beta(), num_steps), ids)
        np.testing.assert_array_equal(x, jnp.broadcast_to(target, x.shape))

    def test_evaluations_are_counted_right(self, name, num_steps):
        calls = []

        def denoise(x, level):
            jax.debug.callback(lambda: calls.append(1))
            return laws.gaussian_denoiser(MEAN, STD)(x, level)

        x_T, ids = noise(2)
        jax.block_until_ready(sample(SAMPLERS[name], denoise, x_T, strided(linear_beta(), num_steps), ids))
        jax.effects_barrier()
        assert len(calls) == SAMPLERS[name].nfe(num_steps)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_depends_on_its_own_key_alone(name):
    x_T, ids = noise(16)
    denoise, steps = laws.gaussian_denoiser(MEAN, STD), strided(linear_beta(), 20)
    whole = sample(SAMPLERS[name], denoise, x_T, steps, ids)
    for part in (slice(5, 6), slice(3, 11)):
        np.testing.assert_array_equal(sample(SAMPLERS[name], denoise, x_T[part], steps, ids[part]), whole[part])


@pytest.mark.parametrize("name", SAMPLERS)
def test_moments_follow_the_recursion(name):
    """For Gaussian data every step is linear in x and z, so mean and variance have a float64 recursion."""
    sampler, steps = SAMPLERS[name], strided(linear_beta(), 50)
    denoise = laws.gaussian_denoiser(np.float64(MEAN), STD)
    mean, variance = 0.0, 1.0
    for step in laws.rows(steps):
        x_0 = lambda x, step=step: denoise(np.asarray(x), step.now).x_0
        gain, keep = x_0(1.0) - x_0(0.0), -np.expm1(-step.h)
        small, large = step.to.sigma**2 * keep, step.now.sigma**2 * keep
        if name.startswith("ancestral"):
            a = step.to.alpha * keep
            b = step.now.alpha / step.to.alpha * (step.to.sigma / step.now.sigma) ** 2
            added = small if "small" in name else large * (step.to.sigma > 0)
        else:
            eta = {"ddim": 0.0, "ddim(0.5)": 0.5, "ddim(1)": 1.0}[name]
            added = eta**2 * small
            b = np.sqrt(step.to.sigma**2 - added) / step.now.sigma
            a = step.to.alpha - b * step.now.alpha
        mean = a * (x_0(0.0) + gain * mean) + b * mean
        variance = (a * gain + b) ** 2 * variance + added
    x_T, ids = noise(40_000, (1,))
    x = np.asarray(sample(sampler, laws.gaussian_denoiser(MEAN, STD), x_T, steps, ids), np.float64)
    assert x.mean() == pytest.approx(mean, abs=5 * np.sqrt(variance / 40_000))
    assert x.var() == pytest.approx(variance, rel=5 * np.sqrt(2 / 40_000))


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_full_chain_draws_the_data_distribution(name):
    """With the exact denoiser, 1000 steps leave a bias in variance well below what 20,000 samples can show."""
    x_T, ids = noise(20_000, (1,))
    x = np.asarray(sample(SAMPLERS[name], laws.gaussian_denoiser(MEAN, STD), x_T, all_steps(linear_beta()), ids))
    assert x.mean() == pytest.approx(MEAN, abs=0.02)
    assert x.std() == pytest.approx(STD, abs=0.02)


def test_ddim_1_is_ancestral_with_the_small_variance():
    x_T, ids = noise(8)
    denoise, steps = laws.gaussian_denoiser(MEAN, STD), strided(cosine_alpha_bar(), 25)
    np.testing.assert_allclose(
        sample(ddim(1.0), denoise, x_T, steps, ids), sample(ancestral("small"), denoise, x_T, steps, ids), atol=2e-5
    )


def test_ddim_converges_with_its_order_to_the_flow_of_the_ode():
    """The exact flow of Gaussian data keeps (x - alpha mean) / marginal std constant."""
    schedule = cosine_alpha_bar(4096)
    start = schedule.level(3600)
    denoise = laws.gaussian_denoiser(MEAN, STD)
    x_T = np.linspace(-2, 2, 9)[:, None]
    exact = MEAN + STD * (x_T - start.alpha * MEAN) / np.sqrt(start.alpha**2 * STD**2 + start.sigma**2)

    def error(num_steps):
        x = x_T
        for step in laws.rows(through(schedule, np.arange(num_steps, -1, -1) * (3600 // num_steps))):
            x_0, eps, _ = denoise(x, step.now)
            x = step.to.alpha * x_0 + step.to.sigma * eps
        ids = keys.per_sample(jax.random.key(0), jnp.arange(9))
        steps = through(schedule, np.arange(num_steps, -1, -1) * (3600 // num_steps))
        ours = sample(ddim(), denoise, jnp.asarray(x_T, jnp.float32), steps, ids)
        np.testing.assert_allclose(ours, x, atol=1e-5, err_msg="the float64 recursion of eq. 12")
        return np.abs(x - exact).max()

    errors = [error(n) for n in (30, 60, 120, 240)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(orders, ddim().order, atol=0.15)


def test_saved_states_start_with_the_noise_and_end_with_the_sample():
    x_T, ids = noise(3)
    denoise, steps = laws.gaussian_denoiser(MEAN, STD), strided(linear_beta(), 10)
    x, path = sample(ancestral(), denoise, x_T, steps, ids, save_every=4)
    assert path.shape == (4, 3, 2)
    np.testing.assert_array_equal(path[0], x_T)
    np.testing.assert_array_equal(path[-1], x)
    _, every = sample(ancestral(), denoise, x_T, steps, ids, save_every=1)
    np.testing.assert_allclose(path[1:3], every[np.array([4, 8])], rtol=1e-6)
    with pytest.raises(ValueError, match="save_every=0"):
        sample(ancestral(), denoise, x_T, steps, ids, save_every=0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_self_conditioned_denoiser_is_fed_its_own_last_estimate(name):
    """An estimate that adds 1 to the one before counts the evaluations, whatever the sampler."""
    x_T, ids = noise(2)

    def bind(x_0_hat):
        return lambda x, level: Prediction(x_0_hat + 1, jnp.zeros_like(x))

    x = sample(SAMPLERS[name], SelfConditioned(bind), x_T, strided(linear_beta(), 7), ids)
    np.testing.assert_allclose(x, SAMPLERS[name].nfe(7), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [(lambda: ddim(1.5), "got eta=1.5"), (lambda: ddim(-0.1), "0 is deterministic")],
)
def test_errors(make, words):
    with pytest.raises(ValueError, match=words):
        make()
