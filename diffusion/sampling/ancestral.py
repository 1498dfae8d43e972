"""Ancestral sampling: DDPM's own sampler."""

import functools
from typing import Any

import jax.numpy as jnp

from diffusion import gaussian, keys
from diffusion.sampling.sampler import Sampler, one_per_step, stateless
from diffusion.types import Denoiser, Step, expand


@functools.cache
def ancestral(variance: str = "large") -> Sampler:
    """Draws each x_{t-1} from N(posterior mean at x_0_hat, variance) (Ho et al. 2020, algorithm 2).

    variance:  "large" is beta_t, right for data ~ N(0, I) and what DDPM's published samples use;
               "small" is the posterior's own, right for data that is one point (section 3.2).
    On a strided grid both are those of the shorter chain. The last step, to clean data, adds no noise.
    Where a gradient guides (`Prediction.push`), the mean is shifted by variance * push (Dhariwal & Nichol 2021,
    arXiv:2105.05233, algorithm 1) in place of what the moved x_0 would shift it by.
    """
    if variance not in ("small", "large"):
        raise ValueError(f"got variance={variance!r}, expected 'small' or 'large'.")

    def step(denoise: Denoiser, x: Any, state: None, step: Step, keys_: Any) -> tuple[Any, None]:
        prediction = denoise(x, step.now)
        mean, small, large = gaussian.posterior(prediction.x_0, x, step)
        if prediction.push is not None:
            wanted = small if variance == "small" else large
            moved = gaussian.posterior_tilt(step)
            mean += expand(wanted - moved, x) * prediction.push
        std = jnp.sqrt(small if variance == "small" else jnp.where(step.to.sigma > 0, large, 0.0))
        return mean + expand(std, x) * keys.normal(keys_, x.shape[1:]), None

    return Sampler(stateless, step, order=1, nfe=one_per_step)
