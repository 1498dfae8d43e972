"""Euler-Maruyama: the plainest solver of the reverse SDE."""

import functools
from typing import Any

import jax.numpy as jnp

from diffusion import gaussian, keys
from diffusion.sampling.sampler import Sampler, one_per_step, stateless
from diffusion.types import Denoiser, Step, expand


@functools.cache
def euler_maruyama() -> Sampler:
    """x - (f x - g^2 score) |dt| + g sqrt|dt| z, frozen at the start of the step (Song et al. 2020, appendix D).

    f dt and g^2 dt are read off the levels: log(alpha_now / alpha_to), and sigma_now^2 (1 - exp(-h)), the variance
    that the forward process adds from `to` to `now`; both agree with f |dt| and g^2 |dt| to first order. The last
    step, to clean data, is the denoiser's x_0 (their "denoising" step). From pure noise, where alpha is 0 and f
    infinite, the step is exact instead: alpha_to x_0 + sigma_to z.
    """
    return Sampler(stateless, _step, order=1, nfe=one_per_step)


def _step(denoise: Denoiser, x: Any, state: None, step: Step, keys_: Any) -> tuple[Any, None]:
    x_0, eps, *_ = denoise(x, step.now)
    scale, added = gaussian.forward_kernel(step)
    z = keys.normal(keys_, x.shape[1:])
    moved = expand(1 - jnp.log(scale), x) * x + expand(added, x) * gaussian.score(eps, step.now)
    moved += expand(jnp.sqrt(added), x) * z
    exact = gaussian.diffuse(x_0, z, step.to)
    return jnp.where((step.to.sigma > 0) & (step.now.alpha > 0), moved, exact), None
