"""Euler's method for the probability-flow ODE in EDM's chart."""

import functools
import math
from typing import Any

from diffusion import gaussian
from diffusion.sampling.churn import Churn
from diffusion.sampling.sampler import Sampler, one_per_step, stateless
from diffusion.types import Denoiser, Step


@functools.cache
def euler(churn: float = 0.0, churn_min: float = 0.0, churn_max: float = math.inf, noise: float = 1.0) -> Sampler:
    """Straight steps of d(x / alpha) / d(sigma / alpha) = eps (Karras et al. 2022, arXiv:2206.00364, algorithm 2).

    Without churn this is DDIM: x_to = alpha_to x_0 + sigma_to eps. churn, churn_min, churn_max, noise: their S_churn,
    S_min, S_max, S_noise.
    """
    churning = Churn(churn, churn_min, churn_max, noise)

    def step(denoise: Denoiser, x: Any, state: None, step: Step, keys: Any) -> tuple[Any, None]:
        x, level = churning.add(x, step, keys, "euler")
        x_0, eps, *_ = denoise(x, level)
        return gaussian.diffuse(x_0, eps, step.to), None

    return Sampler(stateless, step, order=1, nfe=one_per_step, aux=churning.aux, renoises=True)
