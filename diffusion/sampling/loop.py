"""The sampling loop: one `lax.scan` for every sampler."""

from typing import Any

import jax
import jax.numpy as jnp

from diffusion import gaussian
from diffusion.keys import each_at_step, each_stream, normal
from diffusion.sampling.sampler import Sampler
from diffusion.types import AnyDenoiser, Prediction, SelfConditioned, Step, expand, float32


def sample(
    sampler: Sampler, denoise: AnyDenoiser, x_T: Any, steps: Step, keys: Any, *, save_every: int | None = None
) -> Any:
    """x at the end of the grid, [batch, ...]; with save_every=k, (x, path).

    x_T [batch, ...] at the level steps.now[0]; steps: a grid of n steps; keys [batch], one per sample.
    Where a step says so (`Step.back`), noise is added again after it, and the sampler starts anew from there.
    path [1 + ceil(n / k), batch, ...] starts with x_T, goes on with every k-th state, ends with x.
    """
    num_steps = len(steps.h)
    steps = float32(steps)
    if save_every is not None and save_every < 1:
        raise ValueError(f"got save_every={save_every}, expected a positive number of steps.")
    path = None
    if save_every is not None:
        path = jnp.broadcast_to(x_T, (1 + -(-num_steps // save_every), *x_T.shape))

    def move(carry: tuple[Any, Any, Any, Any], numbered: tuple[Any, Step]) -> tuple[tuple[Any, Any, Any, Any], None]:
        x, state, x_0_hat, path = carry
        i, step = numbered
        remembering, recall = _with_memory(denoise, x_0_hat)
        fresh = each_at_step(keys, i)
        x, state = sampler.step(remembering, x, state, step, fresh)
        if step.back is not None:
            again, x = step.back.h > 0, _raised(x, step.back, fresh)
            state = jax.tree.map(lambda new, old: jnp.where(again, new, old), sampler.init(x), state)
        if save_every is not None:  # the states within one stretch overwrite each other; its last one stays
            path = path.at[1 + i // save_every].set(x)
        return (x, state, recall(), path), None

    x_0_hat = jnp.zeros_like(x_T) if isinstance(denoise, SelfConditioned) else None
    carry = (x_T, sampler.init(x_T), x_0_hat, path)
    (x, _, _, path), _ = jax.lax.scan(move, carry, (jnp.arange(num_steps), steps))
    return x if save_every is None else (x, path)


def _raised(x: Any, back: Step, keys: Any) -> Any:
    """A draw of q(x_noisier | x); x itself where back.h is 0."""
    scale, variance = gaussian.forward_kernel(back)
    return expand(scale, x) * x + expand(jnp.sqrt(variance), x) * normal(each_stream(keys, "back"), x.shape[1:])


def _with_memory(denoise: AnyDenoiser, x_0_hat: Any) -> tuple[Any, Any]:
    """(denoiser, recall): a self-conditioned denoiser is fed the last remembered estimate, recall() returns the newest.

    Remembered is the first evaluation of each step, in a Python list filled while the step is traced, so that a
    sampler needs to know nothing of it. (A later one may lie inside `lax.cond`, out of which no value can be kept.)
    """
    if not isinstance(denoise, SelfConditioned):
        return denoise, lambda: None
    estimates = [x_0_hat]

    def remembering(x: Any, level: Any) -> Prediction:
        prediction = denoise.bind(estimates[-1])(x, level)
        if len(estimates) == 1:
            estimates.append(prediction.x_0)
        return prediction

    return remembering, lambda: estimates[-1]
