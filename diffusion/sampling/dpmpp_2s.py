"""DPM-Solver++(2S): second order without memory, by evaluating in the middle of each step."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.sampling.exponential import advance
from diffusion.sampling.sampler import Sampler, needed_aux, stateless
from diffusion.types import Denoiser, Step


@functools.cache
def dpmpp_2s() -> Sampler:
    """The estimate half-way in log-SNR corrects the one at the start (Lu et al. 2022, arXiv:2211.01095, algorithm 1).

    D = (1 - 1 / (2 r)) x_0 + x_0_middle / (2 r), with the middle at the share r of the step: 1/2, or the nearest that a
    chain has, at the latest its end. The step to clean data, which has no middle, is first order with one evaluation;
    so is one from pure noise (alpha = 0), for which nfe counts one too many.
    """
    return Sampler(stateless, _step, order=2, nfe=lambda n: 2 * n - 1, aux=_middle)


def _middle(steps: Step) -> Any:
    """Half-way in log-SNR; where one end is infinite, the finite one, which is then not used."""
    now, to = steps.now.log_snr, steps.to.log_snr
    middle = (np.nan_to_num(now, neginf=0) + np.nan_to_num(to, posinf=0)) / 2
    return np.where(np.isfinite(steps.h), middle, np.where(np.isfinite(now), now, to))


def _step(denoise: Denoiser, x: Any, state: None, step: Step, keys: Any) -> tuple[Any, None]:
    x_0, between = denoise(x, step.now).x_0, needed_aux(step, "dpmpp_2s")
    later = between.log_snr > step.now.log_snr
    middle = jax.tree.map(lambda inside, end: jnp.where(later, inside, end), between, step.to)

    def second(x: Any) -> Any:
        half = step._replace(to=middle, h=middle.log_snr - step.now.log_snr, aux=None)
        x_0_middle = denoise(advance(x, x_0, half), middle).x_0
        share = step.h / (2 * half.h)
        return advance(x, x_0 + share * (x_0_middle - x_0), step)

    return jax.lax.cond(jnp.isfinite(step.h), second, lambda x: advance(x, x_0, step), x), None
