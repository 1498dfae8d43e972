"""Schedules as stochastic differential equations (Song et al. 2020, arXiv:2011.13456), as pure functions.

A continuous path x_t = alpha x_0 + sigma eps is the solution of

    dx = f(t) x dt + g(t) dw,    f = d log(alpha) / dt,    g^2 = -sigma^2 d log_snr / dt,      (`forward_sde`)

since Var[x_t | x_0] obeys d sigma^2 / dt = 2 f sigma^2 + g^2. With score = -eps_hat / sigma it is undone by

    dx = (f x - g^2 score) dt + g dw          running backwards, dt < 0 (eq. 6)               (`reverse_sde`)
    dx = (f x - g^2 score / 2) dt             in either direction (eq. 13)                    (`probability_flow`)

The last line is the same as alpha' x_0_hat + sigma' eps_hat, which stays finite at pure noise, where f does not.

Derivatives come from JAX, so every function here takes a JAX time t in (0, end], [] or [batch], and answers in
float32. Of the samplers only `adaptive_ode` uses this module: the others move between levels exactly, whatever the
time that names them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion.gaussian import score
from diffusion.schedules import Schedule
from diffusion.types import Denoiser, NoiseLevel, expand

Time = Float[Array, "*batch"]


def marginal(schedule: Schedule, x_0: Float[Array, "*shape"], t: Time) -> tuple[Float[Array, "*shape"], Time]:
    """(mean, standard deviation) of x_t given x_0: (alpha x_0, sigma)."""
    level = schedule.level(t)
    return expand(level.alpha, x_0) * x_0, level.sigma


def forward_sde(schedule: Schedule, t: Time) -> tuple[Time, Time]:
    """(f, g): the drift is f x, the diffusion g. f is -inf where alpha is 0."""
    return _drift_and_diffusion(*_level_and_rate(schedule, t))


def log_snr_rate(schedule: Schedule, t: Time) -> Time:
    """d log_snr / dt, negative."""
    return _level_and_rate(schedule, t)[1].log_snr


def reverse_sde(schedule: Schedule, denoise: Denoiser) -> Callable[[Any, Time], tuple[Any, Time]]:
    """(x, t) -> (drift, g) of the SDE that runs from noise to data with the denoiser's score."""

    def coefficients(x: Float[Array, "*shape"], t: Time) -> tuple[Any, Time]:
        level, rate = _level_and_rate(schedule, t)
        f, g = _drift_and_diffusion(level, rate)
        return expand(f, x) * x - expand(g**2, x) * score(denoise(x, level).eps, level), g

    return coefficients


def probability_flow(schedule: Schedule, denoise: Denoiser) -> Callable[[Any, Time], Any]:
    """(x, t) -> dx / dt of the ODE with the same marginals: alpha' x_0_hat + sigma' eps_hat."""

    def velocity(x: Float[Array, "*shape"], t: Time) -> Float[Array, "*shape"]:
        level, rate = _level_and_rate(schedule, t)
        x_0, eps, *_ = denoise(x, level)
        return expand(rate.alpha, x) * x_0 + expand(rate.sigma, x) * eps

    return velocity


def _level_and_rate(schedule: Schedule, t: Time) -> tuple[NoiseLevel, NoiseLevel]:
    if schedule.num_steps is not None:
        raise ValueError("a discrete chain is no SDE; use vp_linear, sub_vp_linear, ve_geometric, edm or flow.")
    return jax.jvp(schedule.level, (t,), (jnp.ones_like(t),))


def _drift_and_diffusion(level: NoiseLevel, rate: NoiseLevel) -> tuple[Any, Any]:
    return rate.alpha / level.alpha, level.sigma * jnp.sqrt(-rate.log_snr)
