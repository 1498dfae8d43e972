"""DPM-Solver++(2M): second order from one evaluation a step, by remembering the last one."""

import functools
from typing import Any

import jax.numpy as jnp

from diffusion.sampling.exponential import advance
from diffusion.sampling.sampler import Sampler, one_per_step
from diffusion.types import Denoiser, Step


@functools.cache
def dpmpp_2m() -> Sampler:
    """x_0_hat is carried on along the line through its last two values (Lu et al. 2022, arXiv:2211.01095, algorithm 2).

    D = x_0 + (x_0 - x_0_before) h / (2 h_before). The first step, and the last one to clean data, are first order.
    """
    return Sampler(nothing_before, _step, order=2, nfe=one_per_step)


def nothing_before(x: Any) -> tuple[Any, Any]:
    """The state before the first step: (estimate, h), the h infinite."""
    return jnp.zeros_like(x), jnp.float32(jnp.inf)


def _step(denoise: Denoiser, x: Any, state: Any, step: Step, keys: Any) -> tuple[Any, Any]:
    x_0 = denoise(x, step.now).x_0
    return second_order(x, x_0, state, step), (x_0, step.h)


def second_order(x: Any, x_0: Any, state: tuple[Any, Any], step: Step) -> Any:
    """x at step.to, from the estimate here and the state."""
    return advance(x, extrapolated(x_0, state, step), step)


def extrapolated(x_0: Any, state: tuple[Any, Any], step: Step) -> Any:
    """D, from the estimate here and (estimate, h) of the step before, whose h is infinite where there was none."""
    before, h_before = state
    share = jnp.where(jnp.isfinite(step.h), step.h / (2 * h_before), 0.0)
    return x_0 + share * (x_0 - before)
