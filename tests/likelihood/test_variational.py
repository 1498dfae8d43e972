"""The bound in bits per dimension: its parts, its estimate, and what it depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import bound, gaussian, likelihood, sampling, schedules
from diffusion.keys import per_sample
from diffusion.types import SelfConditioned, float32
from tests import laws

STD = 0.5
SCHEDULE = schedules.cosine_alpha_bar(60)
STEPS = sampling.all_steps(SCHEDULE)
DENOISE = laws.gaussian_denoiser(0.1, STD)


def keys_of(ids, seed=0):
    return per_sample(jax.random.key(seed), jnp.asarray(ids))


def images(n, seed=0):
    """n images of 3 values on the 17 grey levels."""
    rng = np.random.default_rng(seed)
    levels = np.clip(np.rint(8 * (0.1 + STD * rng.normal(size=(n, 3)))), -8, 8)
    return jnp.asarray(levels / 8, jnp.float32)


def test_the_parts_add_up_and_each_is_a_term_of_the_chain():
    x_0, keys = images(4), keys_of([5, 6, 7, 8])
    found = jax.jit(lambda x, k: likelihood.vlb_bpd(DENOISE, x, STEPS, k, num_values=17))(x_0, keys)
    np.testing.assert_allclose(found.total, found.L_T + found.L_t.sum(0) + found.L_0, rtol=1e-6)
    assert found.L_t.shape == (59, 4)
    np.testing.assert_allclose(found.L_T, bound.prior(x_0, float32(laws.rows_of(STEPS.now, 0))) / np.log(2), rtol=1e-6)
    assert (found.L_t > 0).all()  # KL divergences of Gaussians that differ
    assert (found.L_0 > 0).all()  # surprises of a probability


def test_mse_is_the_error_of_eps_at_each_level():
    x_0 = 0.1 + STD * jax.random.normal(jax.random.key(3), (4000, 1))
    found = jax.jit(lambda x, k: likelihood.vlb_bpd(DENOISE, x, STEPS, k, num_values=0))(x_0, keys_of(range(4000)))
    level = STEPS.now
    wanted = level.alpha**2 * STD**2 / (level.alpha**2 * STD**2 + level.sigma**2)  # Var[eps | x_t]
    np.testing.assert_allclose(found.mse.mean(1), wanted, atol=6 * np.sqrt(2 / 4000))


def test_continuous_gaussian_data_give_the_entropy_within_the_standard_error():
    steps = sampling.all_steps(schedules.linear_beta())
    x_0 = STD * jax.random.normal(jax.random.key(1), (2000, 1))

    def exact(x_t, level):
        prediction = laws.gaussian_denoiser(0.0, STD)(x_t, level)
        return prediction._replace(
            log_var_x_0=jnp.full_like(
                x_t, jnp.log(STD**2 * level.sigma**2 / (level.alpha**2 * STD**2 + level.sigma**2))
            )
        )

    found = jax.jit(lambda x, k: likelihood.vlb_bpd(exact, x, steps, k, num_values=0))(x_0, keys_of(range(2000)))
    mean, error = likelihood.mean_and_error(found.total)
    assert abs(mean - 0.5 * np.log2(2 * np.pi * np.e * STD**2)) < 4 * error
    assert error < 0.05


def test_a_samples_bound_does_not_depend_on_its_batch():
    x_0, keys = images(5), keys_of([3, 9, 1, 4, 7])
    for measure in (
        lambda x, k: likelihood.vlb_bpd(DENOISE, x, STEPS, k, num_values=17).total,
        lambda x, k: likelihood.vlb_bpd_estimate(DENOISE, x, STEPS, k, num_values=17, num_terms=4).total,
    ):
        whole = jax.jit(measure)(x_0, keys)
        np.testing.assert_allclose(jax.jit(measure)(x_0[2:4], keys[2:4]), whole[2:4], rtol=2e-6)


@pytest.mark.parametrize("num_terms", [1, 8, 59])
def test_the_estimate_is_unbiased_and_says_its_error(num_terms):
    one, n = images(1, seed=4), 4000
    x_0 = jnp.broadcast_to(one, (n, 3))
    keys, others = keys_of(range(n)), keys_of(range(n), seed=1)
    full = jax.jit(lambda x, k: likelihood.vlb_bpd(DENOISE, x, STEPS, k, num_values=17))(x_0, keys)
    options = {"num_values": 17, "num_terms": num_terms}
    estimate = jax.jit(lambda x, k: likelihood.vlb_bpd_estimate(DENOISE, x, STEPS, k, **options))(x_0, others)
    for name in ("total", "L_0"):
        (a, a_error), (b, b_error) = (likelihood.mean_and_error(getattr(f, name)) for f in (full, estimate))
        assert abs(a - b) < 4 * np.hypot(a_error, b_error), name
    np.testing.assert_allclose(estimate.L_T, full.L_T, rtol=1e-6)


def test_more_terms_of_the_estimate_vary_less():
    x_0, keys = jnp.broadcast_to(images(1), (1000, 3)), keys_of(range(1000))

    def spread(num_terms):
        options = {"num_values": 17, "num_terms": num_terms}
        estimate = jax.jit(lambda x, k: likelihood.vlb_bpd_estimate(DENOISE, x, STEPS, k, **options).sum)
        return likelihood.mean_and_error(estimate(x_0, keys))[1]

    assert spread(20) < spread(1) / 4


def test_a_self_conditioned_denoiser_is_given_no_estimate():
    told = []

    def bind(estimate):
        told.append(estimate)
        return DENOISE

    x_0, keys = images(2), keys_of([0, 1])
    plain = likelihood.vlb_bpd(DENOISE, x_0, STEPS, keys, num_values=17)
    found = likelihood.vlb_bpd(SelfConditioned(bind), x_0, STEPS, keys, num_values=17)
    np.testing.assert_array_equal(found.total, plain.total)
    assert not np.any(told[0])


def test_a_learned_variance_is_taken_where_the_model_learned_one():
    def learned(x_t, level):
        return DENOISE(x_t, level)._replace(var_frac=jnp.zeros_like(x_t))

    def total(denoise, **options):
        measure = jax.jit(lambda x, k: likelihood.vlb_bpd(denoise, x, STEPS, k, num_values=17, **options).total)
        return measure(images(3), keys_of([0, 1, 2]))

    np.testing.assert_allclose(total(learned), total(DENOISE, variance="small"), rtol=1e-6)
    np.testing.assert_array_equal(total(DENOISE), total(DENOISE, variance="large"))


def test_wrong_input_is_refused():
    x_0, keys = images(1), keys_of([0])
    with pytest.raises(ValueError, match=r"got num_terms=60, expected 1\.\.59"):
        likelihood.vlb_bpd_estimate(DENOISE, x_0, STEPS, keys, num_values=17, num_terms=60)
    with pytest.raises(ValueError, match="does not end in clean data"):
        likelihood.vlb_bpd(DENOISE, x_0, laws.rows_of(STEPS, slice(0, 10)), keys, num_values=17)
    with pytest.raises(ValueError, match=r"parameterization\.variance=range"):
        likelihood.vlb_bpd(DENOISE, x_0, STEPS, keys, num_values=17, variance="learned")


def test_mean_and_error():
    assert likelihood.mean_and_error([1.0, 2.0, 6.0]) == pytest.approx((3.0, np.sqrt(7 / 3)))
    assert np.isnan(likelihood.mean_and_error([1.0])[1])


@pytest.mark.parametrize("steps", [STEPS, sampling.strided(SCHEDULE, 7)], ids=["all", "strided"])
def test_ancestral_sampling_with_the_exact_variance_keeps_the_exact_moments(steps):
    """x_to = c x + s z must carry N(0, alpha_now^2 STD^2 + sigma_now^2) to the same at `to`, on any grid."""
    sampler, key = sampling.ancestral(), keys_of([0])

    def exact(x_t, level):
        prediction = laws.gaussian_denoiser(0.0, STD)(x_t, level)
        return prediction._replace(
            log_var_x_0=jnp.full_like(
                x_t, jnp.log(STD**2 * level.sigma**2 / (level.alpha**2 * STD**2 + level.sigma**2))
            )
        )

    for step in laws.rows(float32(steps)):
        at_0, at_1 = (sampler.step(exact, jnp.full((1, 1), x), None, step, key)[0] for x in (0.0, 1.0))
        noise = at_0 / jax.vmap(lambda k: jax.random.normal(k, (1,)))(key)
        now, to = (level.alpha**2 * STD**2 + level.sigma**2 for level in (step.now, step.to))
        wanted = to if step.to.sigma > 0 else STD**4 * step.now.alpha**2 / now  # the last step adds no noise
        np.testing.assert_allclose((at_1 - at_0) ** 2 * now + noise**2, jnp.full((1, 1), wanted), rtol=3e-5)


@pytest.mark.parametrize("steps", [STEPS, sampling.strided(SCHEDULE, 7)], ids=["all", "strided"])
def test_ancestral_takes_the_learned_range_on_any_grid(steps):
    step = float32(laws.rows_of(steps, 2))
    key, x = keys_of([0]), jnp.ones((1, 2))
    mean, *_ = gaussian.posterior(DENOISE(x, step.now).x_0, x, step)

    def noise(variance, place=None):
        def denoise(x_t, level):
            return DENOISE(x_t, level)._replace(var_frac=None if place is None else jnp.full_like(x_t, place))

        return sampling.ancestral(variance).step(denoise, x, None, step, key)[0] - mean

    np.testing.assert_allclose(noise(None, 0.0), noise("small"), rtol=1e-4)
    np.testing.assert_allclose(noise(None, 1.0), noise("large"), rtol=1e-4)
    np.testing.assert_allclose(noise("learned", 0.5) ** 2, noise("small") * noise("large"), rtol=1e-4)
