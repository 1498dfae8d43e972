"""Training distributions over noise levels: which levels a batch is noised to.

A `LevelSampler` maps (key, batch_size) to a NoiseLevel with fields [batch_size]. How often a level is drawn
and how much its error weighs (`weights.py`) are two choices with one product; they are kept apart so that
each can be changed alone.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion.schedules import Schedule
from diffusion.types import NoiseLevel

LevelSampler = Callable[[jax.Array, int], NoiseLevel]


def uniform(schedule: Schedule) -> LevelSampler:
    """t uniform on 1..T, independent for each sample (DDPM algorithm 1)."""

    def sample(key: jax.Array, batch_size: int) -> NoiseLevel:
        return schedule.level(jax.random.randint(key, (batch_size,), 1, schedule.num_steps + 1))

    return sample


def stratified(schedule: Schedule) -> LevelSampler:
    """t uniform on 1..T for each sample, and spread evenly over each batch.

    Sample i of b draws its time from the i-th of b equal slices of (0, 1], so the batch mean of any function
    of t varies less than with independent draws (Kingma et al. 2021, arXiv:2107.00630, appendix I.1, share one
    offset instead of drawing one a slice).
    """

    def sample(key: jax.Array, batch_size: int) -> NoiseLevel:
        u = (jnp.arange(batch_size) + jax.random.uniform(key, (batch_size,))) / batch_size
        t = 1 + jnp.floor(u * schedule.num_steps).astype(jnp.int32)
        return schedule.level(jnp.minimum(t, schedule.num_steps))

    return sample
