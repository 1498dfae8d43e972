"""The loss of a network and its schedule: what it is, and what its gradient is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import bound, continuous_bound, levels, parameterization
from diffusion.gaussian import diffuse
from diffusion.keys import stream
from diffusion.learned_schedules import learned_log_snr
from diffusion.losses import continuous_bound_loss
from diffusion.training.step import gradient
from diffusion.types import float32

STD, TOP, BOTTOM = 0.6, 12.0, -6.0
LEARNED = learned_log_snr(TOP, BOTTOM, hidden=16)
SCHEDULE = float32(LEARNED.init())
PARAM = dataclasses.replace(parameterization.eps(), cond=LEARNED.embed)
DRAW = levels.stratified(LEARNED.at(LEARNED.init()))


def exact(params, x, told, *, cond, key=None):
    """E[eps | x_t] of data ~ N(0, STD^2), times a scale that should be 1."""
    log_snr = TOP - told * (TOP - BOTTOM) / 1000
    alpha, sigma = jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))
    return params["network"] * (sigma / (alpha**2 * STD**2 + sigma**2))[:, None] * x


LOSS = continuous_bound_loss(exact, levels=DRAW, param=PARAM, learned=LEARNED, num_values=0)


def loss(params, key):
    return LOSS(params, {"image": STD * jax.random.normal(stream(key, "data"), (256, 16))}, key)


def params_of(network=1.0, schedule=SCHEDULE):
    return {"network": jnp.float32(network), "schedule": schedule}


def test_the_expected_loss_is_the_entropy_and_every_part_is_right():
    _, metrics = jax.jit(jax.vmap(lambda key: loss(params_of(), key)))(jax.random.split(jax.random.key(0), 128))
    entropy = 0.5 * np.log2(2 * np.pi * np.e * STD**2)
    diffusion = 0.5 * np.log2((1 + STD**2 * np.exp(TOP)) / (1 + STD**2 * np.exp(BOTTOM)))
    error = 4 * float(metrics["diffusion"].std()) / 128**0.5
    assert float(metrics["diffusion"].mean()) == pytest.approx(diffusion, abs=error)
    assert float(metrics["loss"].mean()) == pytest.approx(entropy, abs=error + 2e-3)
    assert error < 0.1
    assert float(metrics["bin_loss"].sum()) == pytest.approx(256 * float(metrics["diffusion"].sum()), rel=1e-5)


def test_the_gradient_of_the_shape_is_that_of_the_squares_and_all_others_that_of_the_loss():
    key, params = jax.random.key(3), params_of(0.8)
    x_0 = STD * jax.random.normal(jax.random.key(4), (8, 5))

    def plain(params):
        """The three parts by plain autodiff: [batch] of the diffusion, and the mean of the whole."""
        schedule = LEARNED.at(params["schedule"])
        t = DRAW(stream(key, "levels"), 8).t
        level, rate = jax.jvp(schedule.level, (t,), (jnp.ones_like(t),))
        eps, first = (jax.random.normal(stream(key, name), x_0.shape) for name in ("noise", "reconstruction"))
        x_t = diffuse(x_0, eps, level)
        eps_hat = exact(params, x_t, LEARNED.embed(level), cond={})
        diffusion = -rate.log_snr / 2 * jnp.square(eps - eps_hat).mean(1) / np.log(2)
        ends = params["schedule"]["ends"]
        rest = bound.prior(x_0, schedule.level(jnp.float32(1)))
        rest += continuous_bound.reconstruction(x_0, first, ends["log_snr_max"], 0)
        return diffusion, (diffusion + rest / np.log(2)).mean()

    got, metrics = jax.jit(lambda p: gradient(LOSS, p, {"image": x_0}, key))(params)
    assert metrics["loss"] == pytest.approx(float(jax.jit(plain)(params)[1]), rel=1e-5)
    of_loss = jax.jit(jax.grad(lambda p: plain(p)[1]))(params)

    def squares(params):
        found = plain(params)[0]
        return jnp.square(found).mean() / (2 * jax.lax.stop_gradient(found.mean()))

    of_squares = jax.jit(jax.grad(squares))(params)
    assert got["network"] == pytest.approx(float(of_loss["network"]), rel=1e-4)
    for name, end in got["schedule"]["ends"].items():
        assert end == pytest.approx(float(of_loss["schedule"]["ends"][name]), rel=1e-4)
    for name, leaf in got["schedule"]["shape"].items():
        wanted = of_squares["schedule"]["shape"][name]
        assert float(jnp.abs(wanted).max()) > 0
        np.testing.assert_allclose(leaf, wanted, rtol=1e-3, atol=1e-4 * float(jnp.abs(wanted).max()))


def test_training_the_shape_lowers_the_variance_and_leaves_the_mean():
    @jax.jit
    def descend(shape, key):
        moved = params_of(schedule=SCHEDULE | {"shape": shape})
        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(moved, key)
        return jax.tree.map(lambda leaf, g: leaf - 0.03 * jnp.sign(g), shape, grads["schedule"]["shape"]), metrics

    shape, rows = SCHEDULE["shape"], []
    for key in jax.random.split(jax.random.key(0), 120):
        shape, metrics = descend(shape, key)
        rows.append([float(metrics[name]) for name in ("diffusion", "diffusion_std")])
    first, last = np.mean(rows[:20], 0), np.mean(rows[-20:], 0)
    assert last[1] < 0.75 * first[1]
    assert last[0] == pytest.approx(first[0], abs=0.15)
