"""Training on the bound: L_vlb is the bound's own sum, and L_hybrid trains the variance without touching the mean."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import bound, gaussian, levels, likelihood, losses, parameterization, sampling, weights
from diffusion.keys import per_sample, stream
from diffusion.schedules import cosine_alpha_bar
from diffusion.types import expand

SCHEDULE = cosine_alpha_bar(40)
PARAM = dataclasses.replace(parameterization.eps(), variance="range")
LEVELS = levels.uniform(SCHEDULE)
TERM = bound.of_chain(SCHEDULE, variance="learned", num_values=17)
KEY = jax.random.key(3)
GREYS = np.linspace(-1, 1, 17, dtype=np.float32)
BATCH = {"image": jnp.asarray(np.random.default_rng(0).choice(GREYS, (32, 2, 2, 1)))}
PARAMS = {"mean": jnp.array(0.4), "variance": jnp.array(-0.3)}


def apply(params, x, noise_cond, *, cond, key=None):
    """A network of two numbers, one for each half of its output."""
    return jnp.concatenate([params["mean"] * x, params["variance"] * jnp.tanh(x)], axis=-1)


def hybrid(params, weight):
    options = {"levels": LEVELS, "param": PARAM, "weight": weights.constant(), "bound": TERM, "bound_weight": weight}
    return losses.denoising_loss(apply, **options)(params, BATCH, KEY)


def simple(params):
    plain = dataclasses.replace(PARAM, variance=None)
    first = lambda *given, **named: apply(*given, **named)[..., :1]
    return losses.denoising_loss(first, levels=LEVELS, param=plain, weight=weights.constant())(params, BATCH, KEY)


def vlb(params):
    return losses.variational_loss(apply, levels=LEVELS, param=PARAM, bound=TERM)(params, BATCH, KEY)


def test_the_hybrid_loss_is_simple_plus_weight_times_the_bound():
    found, simply, bounded = jax.jit(lambda p: (hybrid(p, 0.25)[0], simple(p)[0], vlb(p)[0]))(PARAMS)
    assert found == pytest.approx(float(simply + 0.25 * bounded), rel=1e-5)


def test_the_bound_in_the_hybrid_loss_trains_the_variance_alone():
    of_hybrid = jax.jit(jax.grad(lambda p: hybrid(p, 0.25)[0]))(PARAMS)
    of_simple, of_vlb = (jax.jit(jax.grad(lambda p, loss=loss: loss(p)[0]))(PARAMS) for loss in (simple, vlb))
    assert of_hybrid["mean"] == pytest.approx(float(of_simple["mean"]), rel=1e-6)
    assert of_hybrid["variance"] == pytest.approx(0.25 * float(of_vlb["variance"]), rel=1e-5)
    assert abs(of_vlb["mean"]) > 1e-3  # which the bound alone would train too


def test_the_bound_alone_is_the_mean_of_each_samples_own_term():
    """At the levels and with the noise that are drawn by name; that the terms add up is tests/test_bound.py's."""

    @jax.jit
    def terms(key):
        level = LEVELS(stream(key, "levels"), 32)
        eps = jax.random.normal(stream(key, "noise"), BATCH["image"].shape)
        x_t = gaussian.diffuse(BATCH["image"], eps, level)
        return TERM(PARAM.predict(apply(PARAMS, x_t, None, cond={}), x_t, level), BATCH["image"], level)

    loss, metrics = jax.jit(vlb)(PARAMS)
    assert loss == pytest.approx(float(terms(KEY).mean()), rel=1e-6)
    assert metrics["bin_loss"].sum() / 32 == pytest.approx(float(loss), rel=1e-5)


def test_the_expected_loss_is_the_bound_without_its_prior():
    def denoise(x_t, level):
        return PARAM.predict(apply(PARAMS, x_t, None, cond={}), x_t, level)

    n = 4000
    images = jnp.broadcast_to(BATCH["image"][:1], (n, 2, 2, 1))
    steps = sampling.all_steps(SCHEDULE)
    whole = jax.jit(lambda x_0, keys: likelihood.vlb_bpd(denoise, x_0, steps, keys, num_values=17))
    found = whole(images, per_sample(KEY, jnp.arange(n)))
    wanted, error = likelihood.mean_and_error(found.total - found.L_T)

    @jax.jit
    def terms(images):
        level = LEVELS(jax.random.key(8), n)
        x_t = gaussian.diffuse(images, jax.random.normal(jax.random.key(9), images.shape), level)
        return TERM(denoise(x_t, level), images, level)

    mean, other = likelihood.mean_and_error(terms(images))
    assert abs(mean - wanted) < 4 * np.hypot(error, other)


def test_a_self_conditioned_network_is_fed_its_own_estimate_in_the_bound_too():
    seen = []

    def told(params, x, noise_cond, *, cond, key=None):
        seen.append(cond["x_0_hat"])
        return apply(params, x, noise_cond, cond=cond)

    loss = losses.variational_loss(told, levels=LEVELS, param=PARAM, bound=TERM, self_conditioning=True)
    loss(PARAMS, BATCH, KEY)
    assert not seen[0].any()
    fed = jnp.abs(seen[1]).max((1, 2, 3)) > 0
    assert 0 < fed.sum() < 32


def test_learning_directly_says_the_variance_of_x_0():
    """V = 0 is the exact variance of data ~ N(0, I), for which the step's variance is then the large one."""
    param = dataclasses.replace(parameterization.eps(), variance="direct")
    steps = sampling.strided(SCHEDULE, 5)
    step = jax.tree.map(lambda column: jnp.asarray(column[1:4], jnp.float32), steps)
    x_t = jnp.linspace(-1, 1, 6).reshape(3, 2)
    level = step.now
    prediction = param.predict(jnp.concatenate([x_t, jnp.zeros_like(x_t)], -1), x_t, level)
    np.testing.assert_allclose(
        prediction.log_var_x_0, jnp.log(expand(level.sigma**2, x_t)) * jnp.ones_like(x_t), rtol=1e-5, atol=1e-6
    )
    found = gaussian.reverse_log_variance(prediction, step, "learned")
    np.testing.assert_allclose(found, expand(gaussian.log_variances(step)[1], x_t) * jnp.ones_like(x_t), rtol=1e-4)


def test_the_range_is_the_middle_for_an_output_of_zero():
    output = jnp.concatenate([jnp.ones((1, 2)), jnp.array([[-1.0, 0.0]])], -1)
    level = SCHEDULE.level(jnp.array([3]))
    np.testing.assert_array_equal(PARAM.predict(output, jnp.zeros((1, 2)), level).var_frac, [[0.0, 0.5]])
