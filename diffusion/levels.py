"""Training distributions over noise levels: which levels a batch is noised to.

A `LevelSampler` maps (key, batch_size) to a NoiseLevel with fields [batch_size]. How often a level is drawn
and how much its error weighs (`weights.py`) are two choices with one product; they are kept apart so that
each can be changed alone.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion.schedules import Schedule
from diffusion.types import NoiseLevel, check_positive

LevelSampler = Callable[[jax.Array, int], NoiseLevel]


def uniform(schedule: Schedule) -> LevelSampler:
    """t uniform, independent for each sample: on 1..T of a chain (DDPM algorithm 1), on (0, end] of a path."""
    return lambda key, batch_size: _at(schedule, jax.random.uniform(key, (batch_size,)))


def stratified(schedule: Schedule) -> LevelSampler:
    """t uniform for each sample, and spread evenly over each batch.

    Sample i of b draws its time from the i-th of b equal slices of (0, 1], so the batch mean of any function
    of t varies less than with independent draws (Kingma et al. 2021, arXiv:2107.00630, appendix I.1, share one
    offset instead of drawing one a slice).
    """

    def sample(key: jax.Array, batch_size: int) -> NoiseLevel:
        return _at(schedule, (jnp.arange(batch_size) + jax.random.uniform(key, (batch_size,))) / batch_size)

    return sample


def antithetic(schedule: Schedule) -> LevelSampler:
    """t uniform for each sample, in pairs u and 1 - u: what is linear in t has no variance but an odd batch's last.

    Sample i and its partner, half a batch later, mirror each other.
    """

    def sample(key: jax.Array, batch_size: int) -> NoiseLevel:
        u = jax.random.uniform(key, (-(-batch_size // 2),))
        return _at(schedule, jnp.concatenate([u, 1 - u])[:batch_size])

    return sample


def log_normal(schedule: Schedule, mean: float = -1.2, std: float = 1.2) -> LevelSampler:
    """ln(sigma / alpha) normal with EDM's P_mean and P_std (Karras et al. 2022, table 1); a chain's nearest level."""
    check_positive("std", std)

    def sample(key: jax.Array, batch_size: int) -> NoiseLevel:
        log_sigma = mean + std * jax.random.normal(key, (batch_size,))
        return schedule.level(schedule.time_at(-2 * log_sigma))

    return sample


def logit_normal(schedule: Schedule, mean: float = 0.0, std: float = 1.0) -> LevelSampler:
    """t / end the sigmoid of a normal, which prefers the middle (Esser et al. 2024, arXiv:2403.03206, eq. 19)."""
    check_positive("std", std)

    def sample(key: jax.Array, batch_size: int) -> NoiseLevel:
        return _at(schedule, jax.nn.sigmoid(mean + std * jax.random.normal(key, (batch_size,))))

    return sample


def _at(schedule: Schedule, u: Float[Array, " batch"]) -> NoiseLevel:
    """The levels at the shares u in [0, 1] of a schedule's times, which exclude clean data."""
    if schedule.num_steps is None:
        return schedule.level(schedule.end * jnp.maximum(u, jnp.finfo(u.dtype).eps / 2))
    return schedule.level(1 + jnp.minimum(jnp.floor(u * schedule.num_steps).astype(int), schedule.num_steps - 1))
