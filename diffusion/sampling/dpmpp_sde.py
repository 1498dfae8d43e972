"""SDE-DPM-Solver++(2M): the stochastic sibling of dpmpp_2m."""

import functools
from typing import Any

import jax.numpy as jnp

from diffusion import keys
from diffusion.sampling.dpmpp_2m import extrapolated, nothing_before
from diffusion.sampling.sampler import Sampler, one_per_step
from diffusion.types import Denoiser, Step, expand


@functools.cache
def dpmpp_sde() -> Sampler:
    """The reverse SDE, exact but for x_0_hat, carried on along 2M's line (Lu et al. 2022, arXiv:2211.01095, app. A).

    x_to = (sigma_to / sigma_now) exp(-h) x + alpha_to (1 - exp(-2h)) D + sigma_to sqrt(1 - exp(-2h)) z, h = Step.h / 2.
    With D = x_0 it is ancestral sampling with the small variance. One evaluation a step.
    """
    return Sampler(nothing_before, _step, order=1, nfe=one_per_step)


def _step(denoise: Denoiser, x: Any, state: Any, step: Step, keys_: Any) -> tuple[Any, Any]:
    x_0, kept = denoise(x, step.now).x_0, -jnp.expm1(-step.h)
    decay = step.to.sigma / step.now.sigma * jnp.exp(-step.h / 2)
    mean = expand(decay, x) * x + expand(step.to.alpha * kept, x) * extrapolated(x_0, state, step)
    noise = keys.normal(keys_, x.shape[1:])
    return mean + expand(step.to.sigma * jnp.sqrt(kept), x) * noise, (x_0, step.h)
