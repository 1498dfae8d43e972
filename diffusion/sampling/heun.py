"""Heun's method: EDM's sampler."""

import functools
import math
from typing import Any

import jax

from diffusion import gaussian
from diffusion.sampling.churn import Churn
from diffusion.sampling.sampler import Sampler, stateless
from diffusion.types import Denoiser, Step, expand


@functools.cache
def heun(churn: float = 0.0, churn_min: float = 0.0, churn_max: float = math.inf, noise: float = 1.0) -> Sampler:
    """Steps of d(x / alpha) / d(sigma / alpha) = eps with the slope's mean over both ends (Karras et al. 2022, alg. 2).

    The step to clean data has no slope at its end: it is Euler's, and 18 steps are 35 evaluations.
    churn, churn_min, churn_max, noise: S_churn, S_min, S_max, S_noise of arXiv:2206.00364.
    """
    churning = Churn(churn, churn_min, churn_max, noise)

    def step(denoise: Denoiser, x: Any, state: None, step: Step, keys: Any) -> tuple[Any, None]:
        x, level = churning.add(x, step, keys, "heun")
        x_0, eps, *_ = denoise(x, level)
        to = step.to
        end = gaussian.diffuse(x_0, eps, to)

        def corrected(end: Any) -> Any:
            # alpha_to times half of (eps_end - eps), over the change of sigma / alpha
            reach = to.sigma - to.alpha * level.sigma / level.alpha
            return end + expand(reach / 2, x) * (denoise(end, to).eps - eps)

        usable = (to.sigma > 0) & (level.alpha > 0)
        return jax.lax.cond(usable, corrected, lambda end: end, end), None

    return Sampler(stateless, step, order=2, nfe=lambda n: 2 * n - 1, aux=churning.aux)
