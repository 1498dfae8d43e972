"""A third-order multistep exponential solver: DPM-Solver++ with the parabola through three estimates."""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp

from diffusion.sampling.dpmpp_2m import second_order
from diffusion.sampling.exponential import through_points
from diffusion.sampling.sampler import Sampler, one_per_step
from diffusion.types import Denoiser, Step


class History(NamedTuple):
    """The last two estimates, and the h of the steps that followed them; infinite where there was none."""

    last: Any
    h_last: Any
    first: Any
    h_first: Any


@functools.cache
def dpmpp_3m() -> Sampler:
    """x_0_hat is carried on along the parabola through its last three values, integrated exactly.

    The third-order member of DPM-Solver++'s family (Lu et al. 2022, arXiv:2211.01095, section 4), as an exponential
    Adams-Bashforth method. The first step and the one to clean data are first order, the second step is 2M's.
    """
    return Sampler(no_history, _step, order=3, nfe=one_per_step)


def no_history(x: Any) -> History:
    """The state before the first step."""
    never = jnp.float32(jnp.inf)
    return History(jnp.zeros_like(x), never, jnp.zeros_like(x), never)


def _step(denoise: Denoiser, x: Any, past: History, step: Step, keys: Any) -> tuple[Any, History]:
    x_0 = denoise(x, step.now).x_0
    return third_order(x, x_0, past, step), History(x_0, step.h, past.last, past.h_last)


def third_order(x: Any, x_0: Any, past: History, step: Step) -> Any:
    """x at step.to, at the highest order that the past allows."""
    second = second_order(x, x_0, (past.last, past.h_last), step)
    tau = (jnp.zeros(()), -past.h_last / 2, -(past.h_last + past.h_first) / 2)
    third = through_points(x, step, tau, (x_0, past.last, past.first))
    return jnp.where(jnp.isfinite(step.h) & jnp.isfinite(past.h_first) & jnp.isfinite(past.h_last), third, second)
