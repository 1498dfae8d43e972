"""Ancestral sampling: DDPM's own sampler."""

import functools
from typing import Any

import jax.numpy as jnp

from diffusion import gaussian, keys
from diffusion.sampling.sampler import Sampler, one_per_step, stateless
from diffusion.types import Denoiser, Step, expand


@functools.cache
def ancestral(variance: str | None = None) -> Sampler:
    """Draws each x_{t-1} from N(posterior mean at x_0_hat, variance) (Ho et al. 2020, algorithm 2).

    variance:  "large" is beta_t, right for data ~ N(0, I) and what DDPM's published samples use;
               "small" is the posterior's own, right for data that is one point (section 3.2);
               "learned" is what the model says (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 15);
               None is "learned" where the model learned one, else "large".
    On a strided grid they are those of the shorter chain. The last step, to clean data, adds no noise.
    Where a gradient guides (`Prediction.push`), the mean is shifted by variance * push (Dhariwal & Nichol 2021,
    arXiv:2105.05233, algorithm 1) in place of what the moved x_0 would shift it by.
    """
    if variance not in (None, *gaussian.VARIANCES):
        raise ValueError(f"got variance={variance!r}, expected one of {', '.join(gaussian.VARIANCES)}.")

    def step(denoise: Denoiser, x: Any, state: None, step: Step, keys_: Any) -> tuple[Any, None]:
        prediction = denoise(x, step.now)
        mean, small, large = gaussian.posterior(prediction.x_0, x, step)
        which = variance or gaussian.learned_or_large(prediction)
        if which == "learned":
            wanted = jnp.exp(gaussian.reverse_log_variance(prediction, step, which))
        else:
            wanted = expand(small if which == "small" else large, x)
        if prediction.push is not None:
            mean += (wanted - expand(gaussian.posterior_tilt(step), x)) * prediction.push
        std = jnp.sqrt(jnp.where(expand(step.to.sigma > 0, x), wanted, 0.0))
        return mean + std * keys.normal(keys_, x.shape[1:]), None

    return Sampler(stateless, step, order=1, nfe=one_per_step)
