"""Inversion: the noise from which a deterministic sampler draws a given image."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from diffusion.sampling.ddim import ddim
from diffusion.sampling.generate import Model, generate, grid_for
from diffusion.sampling.sampler import Sampler
from diffusion.types import Denoiser, Step, expand


def invert(
    model: Model | Denoiser, images: Float[np.ndarray, "n *shape"], *, iterations: int = 1, **options: Any
) -> Float[np.ndarray, "n *shape"]:
    """The x_T, one for each image, from which `generate(model, x_T=x_T, sampler=ddim(), ...)` draws the image again.

    DDIM's steps (Song et al. 2020, arXiv:2010.02502, eq. 13 with eta = 0) are undone one by one up the grid. A step is
    x_to = alpha_to x_0_hat + sigma_to eps_hat with estimates made at x_now, so x_now solves

        x_now = (alpha_now / alpha_to) (x_to - sigma_to eps_hat(x_now)) + sigma_now eps_hat(x_now),

    which is iterated, starting from the step before's eps_hat. iterations=1 costs what the usual DDIM inversion does
    and evaluates at the predicted x_now, not at x_to. More make the round trip exact, as fast as x_0_hat follows x_now:
    slowly along what the denoiser takes for noise. Each costs one evaluation a step. Where alpha_now is 0 (pure noise)
    the same step is solved for eps_hat.

    options: as in `generate`: num_steps or steps (the same for the way back), cond, batch_size, progress.
    A clipped x_0_hat is the same for many x, so that x_T is one of several; build.load(..., sampler={"threshold":
    "none"}) leaves clipping out (docs/editing.md has both measured). A self-conditioned run, whose estimates depend on
    the way, does not come back exactly.
    """
    if iterations < 1:
        raise ValueError(f"got iterations={iterations}, expected at least 1.")
    steps = grid_for(model, ddim(), options.pop("num_steps", None), options.pop("steps", None))[1]
    upwards = jax.tree.map(lambda column: column[::-1], steps)
    shape = model.shape if isinstance(model, Model) else images.shape[1:]
    return generate(model, x_T=images, shape=shape, sampler=_ascending(iterations), steps=upwards, **options)


@functools.cache
def _ascending(iterations: int) -> Sampler:
    """DDIM's steps, undone: from step.to up to step.now."""

    def step(denoise: Denoiser, x: Any, eps: Any, step: Step, keys: Any) -> tuple[Any, Any]:
        solve = _solution(x, step)

        def improved(_: Any, guess: tuple[Any, Any]) -> tuple[Any, Any]:
            x_0, eps, *_ = denoise(guess[0], step.now)
            return solve(x_0, eps), eps

        first = improved(0, (solve(None, eps), eps))  # outside the loop, to be remembered
        return jax.lax.fori_loop(1, iterations, improved, first)

    return Sampler(jnp.zeros_like, step, order=1, nfe=lambda n: n * iterations, check=_check)


def _solution(x_to: Any, step: Step) -> Callable[[Any, Any], Any]:
    """(x_0_hat, eps_hat) -> the x_now which with these estimates goes to x_to; x_0_hat None for a first guess."""
    now, to = step.now, step.to
    pure = now.alpha == 0  # x_to says nothing of x_now through alpha_now x_0; through sigma_now eps it does
    ratio = now.sigma / jnp.where(pure, to.sigma, 1.0)
    of_x = jnp.where(pure, ratio, now.alpha / to.alpha)
    of_x_0 = jnp.where(pure, -ratio * to.alpha, 0.0)
    of_eps = jnp.where(pure, 0.0, now.sigma - now.alpha / to.alpha * to.sigma)

    def solve(x_0: Any, eps: Any) -> Any:
        x_now = expand(of_x, x_to) * x_to + expand(of_eps, x_to) * eps
        return x_now if x_0 is None else x_now + expand(of_x_0, x_to) * x_0

    return solve


def _check(steps: Step) -> None:
    if ((np.asarray(steps.now.alpha) == 0) & (np.asarray(steps.to.sigma) == 0)).any():
        raise ValueError("one step from pure noise to clean data cannot be undone: take a grid of more steps.")
