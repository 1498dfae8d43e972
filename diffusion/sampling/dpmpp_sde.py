"""SDE-DPM-Solver++(2M): the stochastic sibling of dpmpp_2m."""

import functools
from typing import Any

import jax.numpy as jnp

from diffusion import gaussian, keys
from diffusion.sampling.dpmpp_2m import extrapolated, nothing_before
from diffusion.sampling.sampler import Sampler, one_per_step
from diffusion.types import Denoiser, Step, expand


@functools.cache
def dpmpp_sde() -> Sampler:
    """The reverse SDE, exact but for x_0_hat, carried on along 2M's line (Lu et al. 2022, arXiv:2211.01095, app. A).

    x_to = (sigma_to / sigma_now) exp(-h) x + alpha_to (1 - exp(-2h)) D + sigma_to sqrt(1 - exp(-2h)) z, h = Step.h / 2.
    That is the posterior given D: with D = x_0, ancestral sampling with the small variance. One evaluation a step.
    """
    return Sampler(nothing_before, _step, order=1, nfe=one_per_step)


def _step(denoise: Denoiser, x: Any, state: Any, step: Step, keys_: Any) -> tuple[Any, Any]:
    x_0 = denoise(x, step.now).x_0
    mean, small, _ = gaussian.posterior(extrapolated(x_0, state, step), x, step)
    return mean + expand(jnp.sqrt(small), x) * keys.normal(keys_, x.shape[1:]), (x_0, step.h)
