"""UniPC: each evaluation first corrects the step that led to it, then predicts the next."""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp

from diffusion.sampling.dpmpp_2m import second_order
from diffusion.sampling.dpmpp_3m import History, no_history, third_order
from diffusion.sampling.exponential import through_points
from diffusion.sampling.sampler import Sampler, one_per_step
from diffusion.types import Denoiser, NoiseLevel, Step


class Past(NamedTuple):
    """The step before (which began at the corrected x), and the estimates up to its start."""

    x: Any
    step: Step
    estimates: History


@functools.cache
def unipc(predictor_order: int = 2) -> Sampler:
    """A predictor of order 2 (dpmpp_2m) or 3 (dpmpp_3m), corrected to third order at no further evaluation.

    Zhao et al. 2023, arXiv:2302.04867: the estimate at a predicted x joins those before it, and the step is done again
    with the polynomial through all (UniC, an exponential Adams-Moulton step, exact in x_0_hat's first two powers). The
    step to clean data is not corrected.
    """
    if predictor_order not in (2, 3):
        raise ValueError(f"got predictor_order={predictor_order}, expected 2 or 3.")

    def move(denoise: Denoiser, x: Any, past: Past, step: Step, keys: Any) -> tuple[Any, Past]:
        x_0, before = denoise(x, step.now).x_0, past.estimates
        x = jnp.where(jnp.isfinite(before.h_last), _corrected(past, x_0), x)
        estimates = History(x_0, step.h, before.last, before.h_last)
        if predictor_order == 3:
            predicted = third_order(x, x_0, before, step)
        else:
            predicted = second_order(x, x_0, (before.last, before.h_last), step)
        return predicted, Past(x, Step(_nameless(step.now), _nameless(step.to), step.h), estimates)

    return Sampler(_init, move, order=3, nfe=one_per_step)


def _init(x: Any) -> Past:
    unused = NoiseLevel(*[jnp.float32(1.0)] * 4)
    return Past(x, Step(unused, unused, jnp.float32(1.0)), no_history(x))


def _nameless(level: NoiseLevel) -> NoiseLevel:
    """The level without its time, whose type differs between chains and paths."""
    return level._replace(t=jnp.float32(1.0))


def _corrected(past: Past, x_0_to: Any) -> Any:
    """The step before, done again with the estimate at its end."""
    h, h_first, estimates = past.step.h / 2, past.estimates.h_first / 2, past.estimates
    line = through_points(past.x, past.step, (jnp.zeros(()), h), (estimates.last, x_0_to))
    parabola = through_points(
        past.x, past.step, (jnp.zeros(()), h, -h_first), (estimates.last, x_0_to, estimates.first)
    )
    return jnp.where(jnp.isfinite(h_first), parabola, line)
