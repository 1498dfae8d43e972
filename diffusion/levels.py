"""Training distributions over noise levels: which levels a batch is noised to.

A `LevelSampler` maps (key, batch_size) to a NoiseLevel with fields [batch_size]. How often a level is drawn
and how much its error weighs (`weights.py`) are two choices with one product; they are kept apart so that
each can be changed alone.

Most are fixed distributions. `AdaptiveLevels` learn from the losses which levels to draw, and undo the preference by
an importance that multiplies the loss, so that its expectation stays the uniform one's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion.schedules import Schedule
from diffusion.types import NoiseLevel, check_positive

LevelSampler = Callable[[jax.Array, int], NoiseLevel]


class Draw(NamedTuple):
    """Levels with fields [batch]; what their losses are multiplied by, [] or [batch]; where `update` files them."""

    level: NoiseLevel
    importance: Any = 1.0
    place: Any = None


@dataclass(frozen=True)
class AdaptiveLevels:
    """A level sampler with a memory, which training carries in its state.

    init() -> the memory before the first update, a tree of arrays.
    draw(memory, key, batch_size) -> Draw.
    update(memory, place, losses) -> the memory after an update in which Draw.place had these losses, both [batch].

    Called as a plain `LevelSampler`, it draws as before the first update.
    """

    init: Callable[[], Any]
    draw: Callable[[Any, jax.Array, int], Draw]
    update: Callable[[Any, Any, Any], Any]

    def __call__(self, key: jax.Array, batch_size: int) -> NoiseLevel:
        """The levels drawn with an empty memory."""
        return self.draw(self.init(), key, batch_size).level


def adaptive(levels: LevelSampler) -> AdaptiveLevels:
    """Any level sampler as one with a memory; that of a plain one is always None."""
    if isinstance(levels, AdaptiveLevels):
        return levels
    return AdaptiveLevels(lambda: None, lambda _, key, n: Draw(levels(key, n)), lambda memory, place, losses: None)


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


class SecondMoments(NamedTuple):
    """The last losses of each level, [bins, history], and how many it has had, [bins]."""

    losses: Any
    count: Any


def loss_second_moment(
    schedule: Schedule, history: int = 10, uniform_share: float = 0.001, num_bins: int = 100
) -> LevelSampler:
    """Levels as often as the root mean square of their last losses says (Nichol & Dhariwal 2021, eq. 18).

    p_t = (1 - uniform_share) sqrt(E[L_t^2]) / sum + uniform_share / T over the last `history` losses of each step, and
    importance 1 / (T p_t); uniform until every step has had so many. Made for the noisy gradients of weight "vlb".
    A chain has one bin a step; a continuous path num_bins equal slices of its times.
    """
    if history < 1 or not 0 < uniform_share <= 1 or num_bins < 1:
        raise ValueError(
            f"got history={history}, uniform_share={uniform_share}, num_bins={num_bins}; expected history >= 1, "
            "uniform_share in (0, 1] and num_bins >= 1."
        )
    bins = schedule.num_steps or num_bins

    def init() -> SecondMoments:
        return SecondMoments(jnp.zeros((bins, history)), jnp.zeros(bins, jnp.int32))

    def draw(memory: SecondMoments, key: jax.Array, batch_size: int) -> Draw:
        root = jnp.sqrt(jnp.square(memory.losses).mean(1))
        root += jnp.finfo(root.dtype).tiny  # should every loss be 0
        learned = (1 - uniform_share) * root / root.sum() + uniform_share / bins
        p = jnp.where((memory.count >= history).all(), learned, 1 / bins)
        of_bin, within = jax.random.split(key)
        place = jax.random.categorical(of_bin, jnp.log(p), shape=(batch_size,))
        if schedule.num_steps is not None:
            level = schedule.level(1 + place)
        else:
            level = _at(schedule, (place + jax.random.uniform(within, (batch_size,))) / bins)
        return Draw(level, 1 / (bins * p[place]), place)

    def update(memory: SecondMoments, place: Any, losses: Any) -> SecondMoments:
        def file(memory: SecondMoments, one: tuple[Any, Any]) -> tuple[SecondMoments, None]:
            place, loss = one
            turn = memory.count[place] % history
            return SecondMoments(memory.losses.at[place, turn].set(loss), memory.count.at[place].add(1)), None

        return jax.lax.scan(file, memory, (place, losses))[0]

    return AdaptiveLevels(init, draw, update)


def _at(schedule: Schedule, u: Float[Array, " batch"]) -> NoiseLevel:
    """The levels at the shares u in [0, 1] of a schedule's times, which exclude clean data."""
    if schedule.num_steps is None:
        return schedule.level(schedule.end * jnp.maximum(u, jnp.finfo(u.dtype).eps / 2))
    return schedule.level(1 + jnp.minimum(jnp.floor(u * schedule.num_steps).astype(int), schedule.num_steps - 1))
