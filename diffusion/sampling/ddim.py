"""DDIM: the family between ancestral sampling and a deterministic flow."""

import functools
from typing import Any

import jax.numpy as jnp

from diffusion import gaussian, keys
from diffusion.sampling.sampler import Sampler, one_per_step, stateless
from diffusion.types import Denoiser, Step, expand


@functools.cache
def ddim(eta: float = 0.0) -> Sampler:
    """x_to = alpha_to x_0_hat + sqrt(sigma_to^2 - s^2) eps_hat + s z (Song et al. 2020, arXiv:2010.02502, eq. 12).

    s = eta sqrt(posterior variance) (eq. 16): eta = 0 is deterministic and first-order accurate for the
    probability-flow ODE, eta = 1 equals ancestral(variance="small").
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"got eta={eta}, expected a number in [0, 1]: 0 is deterministic, 1 ancestral.")

    def step(denoise: Denoiser, x: Any, state: None, step: Step, keys_: Any) -> tuple[Any, None]:
        x_0, eps, *_ = denoise(x, step.now)
        small = gaussian.posterior(x_0, x, step)[1]
        rest = jnp.sqrt(step.to.sigma**2 - eta**2 * small)
        x = expand(step.to.alpha, x) * x_0 + expand(rest, x) * eps
        if eta > 0:
            x += expand(eta * jnp.sqrt(small), x) * keys.normal(keys_, x.shape[1:])
        return x, None

    return Sampler(stateless, step, order=1, nfe=one_per_step, renoises=True)
