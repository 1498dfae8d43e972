"""Oracles that the tests share: closed forms, recomputed independently of the code under test."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.types import NoiseLevel, Prediction, Step, expand


class Tables(NamedTuple):
    """DDPM's tables, float64, index 0 standing for t = 0 (clean), written as in the paper."""

    betas: np.ndarray
    alpha_bar: np.ndarray
    posterior_x_0: np.ndarray  # coefficient of x_0 in mu tilde (eq. 7)
    posterior_x_t: np.ndarray
    posterior_variance: np.ndarray


def noisy(params, scale=0.1):
    """The parameters moved away from zero, so that every input reaches the output; on the host: nothing compiles."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x) + scale * rng.normal(size=x.shape), x.dtype), params)


def random_params(network, scale=0.1):
    """A network's parameters, nowhere zero, without its initialiser, whose many random kernels compile for seconds.

    Gains are drawn around one, all others around zero, kernels as wide as their inputs ask for.
    """
    rng = np.random.default_rng(0)

    def new(path, leaf):
        if path[-1].key == "kernel":
            return rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        return np.full(leaf.shape, float(path[-1].key == "scale"))

    made = jax.tree_util.tree_map_with_path(new, jax.eval_shape(network.init, jax.random.key(0)))
    return noisy(jax.tree.map(np.float32, made), scale)


def normal(seed: int, *shape: int) -> jax.Array:
    """Standard normal numbers."""
    return jax.random.normal(jax.random.key(seed), shape)


def value_and_gradients(f, cotangent, *args):
    """(f(*args), the cotangent taken back to each argument), compiled as one program."""

    def both(cotangent, *args):
        value, pullback = jax.vjp(f, *args)
        return value, *pullback(cotangent)

    return jax.jit(both)(cotangent, *args)


def ddpm_tables(betas):
    betas = np.concatenate([[0.0], np.asarray(betas, np.float64)])
    alpha_bar = np.cumprod(1 - betas)
    before = np.concatenate([[1.0], alpha_bar[:-1]])
    with np.errstate(invalid="ignore"):
        return Tables(
            betas,
            alpha_bar,
            np.sqrt(before) * betas / (1 - alpha_bar),
            np.sqrt(1 - betas) * (1 - before) / (1 - alpha_bar),
            (1 - before) / (1 - alpha_bar) * betas,
        )


def linear_betas(num_steps=1000):
    return np.linspace(1e-4, 0.02, num_steps)


def gaussian_denoiser(mean, std):
    """The exact denoiser of data ~ N(mean, std^2 I): E[x_0 | x_t], linear in x_t."""

    def denoise(x, level: NoiseLevel) -> Prediction:
        alpha, sigma = expand(level.alpha, x), expand(level.sigma, x)
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        x_0 = mean + gain * (x - alpha * mean)
        return Prediction(x_0, (x - alpha * x_0) / sigma)

    return denoise


def correlated_denoiser(mean, covariance):
    """The exact denoiser of data ~ N(mean, covariance), whatever the shape of a sample of as many values."""
    mean, covariance = jnp.asarray(mean, jnp.float32), jnp.asarray(covariance, jnp.float32)

    def denoise(x, level: NoiseLevel) -> Prediction:
        alpha, sigma, n = level.alpha, level.sigma, len(mean)
        away = x.reshape(-1, n) - alpha * mean[None]
        x_0 = mean[None] + alpha * away @ jnp.linalg.solve(alpha**2 * covariance + sigma**2 * jnp.eye(n), covariance)
        x_0 = x_0.reshape(x.shape)
        return Prediction(x_0, (x - alpha * x_0) / sigma)

    return denoise


def mixture_denoiser(means, stds, weights):
    """The exact denoiser of a mixture of Gaussians N(means[k], stds[k]^2 I): the posterior mean over its components.

    means [k, dim], stds [k], weights [k]. x_t of component k is N(alpha mean, alpha^2 std^2 + sigma^2).
    """
    means, stds, log_weights = jnp.asarray(means), jnp.asarray(stds), jnp.log(jnp.asarray(weights))

    def denoise(x, level: NoiseLevel) -> Prediction:
        alpha, sigma = (jnp.reshape(c, (-1, 1)) for c in (level.alpha, level.sigma))  # [batch or 1, component]
        variance = alpha**2 * stds[None] ** 2 + sigma**2
        away = x[:, None] - alpha[..., None] * means[None]
        log_likelihood = -0.5 * (away**2).sum(-1) / variance - 0.5 * x.shape[-1] * jnp.log(variance)
        share = jax.nn.softmax(log_weights[None] + log_likelihood)
        gain = alpha * stds[None] ** 2 / variance
        x_0 = (share[..., None] * (means[None] + gain[..., None] * away)).sum(1)
        return Prediction(x_0, (x - expand(level.alpha, x) * x_0) / expand(level.sigma, x))

    return denoise


def mixture_samples(rng, means, stds, weights, n):
    """n draws from the same mixture, float64."""
    k = rng.choice(len(weights), n, p=weights)
    return np.asarray(means)[k] + np.asarray(stds)[k, None] * rng.normal(size=(n, np.shape(means)[1]))


def perfect_denoiser(x_0):
    """The denoiser of data that is the single point x_0."""

    def denoise(x, level: NoiseLevel) -> Prediction:
        target = jnp.broadcast_to(x_0, x.shape)
        return Prediction(target, (x - expand(level.alpha, x) * target) / expand(level.sigma, x))

    return denoise


def step_at(schedule, now, to):
    """One step of the schedule between two times, float64."""
    now, to = schedule.level(now), schedule.level(to)
    return Step(now, to, to.log_snr - now.log_snr)


def rows_of(tree, part):
    """Part of the leading axis of every column."""
    return jax.tree.map(lambda column: column[part], tree)


def rows(steps: Step):
    """The single steps of a grid, in order."""
    for i in range(len(steps.h)):
        yield rows_of(steps, i)
