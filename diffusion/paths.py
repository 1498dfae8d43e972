"""What a schedule is: a path from clean data to noise, either a chain of steps or continuous.

`schedules.py` holds the schedules themselves; here are the type and the two ways to make one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.types import NoiseLevel


@dataclass(frozen=True)
class Schedule:
    """A path from clean data to noise.

    level(t):          the NoiseLevel at time t; t and the answer's fields have the same shape.
    time_at(log_snr):  the time of that log-SNR; on a chain, the one whose level is nearest to it.
    num_steps:         T for a discrete chain, whose times are the integers 0..T; None for a continuous path.
    end:               the noisiest time, T for a chain.
    embed(level):      what a network is told of a level, in the units its paper uses.
    """

    level: Callable[[Any], NoiseLevel]
    time_at: Callable[[Any], Any]
    num_steps: int | None = None
    end: int | float = 1.0
    embed: Callable[[NoiseLevel], Any] = lambda level: level.t

    def chain_length(self, wanted_by: str) -> int:
        """T; ValueError on a continuous path, which `wanted_by` cannot use."""
        if self.num_steps is None:
            raise ValueError(f"{wanted_by} needs a discrete chain, but the schedule is continuous.")
        return self.num_steps


def chain(alpha: np.ndarray, sigma: np.ndarray, log_snr: np.ndarray) -> Schedule:
    """The chain of the given levels at the times 0..T, float64."""
    table = NoiseLevel(np.arange(len(log_snr)), alpha, sigma, log_snr)
    last = len(log_snr) - 1
    return Schedule(lambda t: _level(table, t), lambda x: _nearest(table, x), last, last)


def _level(table: NoiseLevel, t: Any) -> NoiseLevel:
    if isinstance(t, jax.Array):
        rows = [jnp.asarray(column, jnp.float32)[t] for column in table[1:]]
        return NoiseLevel(t, *rows)
    t, last = np.asarray(t), len(table.t) - 1
    if not np.issubdtype(t.dtype, np.integer) or t.min() < 0 or t.max() > last:
        raise ValueError(f"got time {t}, expected integers in 0..{last} (0 is clean data, {last} the noisiest).")
    return NoiseLevel(t, *(column[t] for column in table[1:]))


def _nearest(table: NoiseLevel, log_snr: Any) -> Any:
    np_ = jnp if isinstance(log_snr, jax.Array) else np
    log_snr = np_.asarray(log_snr)
    steps = np_.asarray(table.log_snr[1:])
    distance = abs(np_.expand_dims(log_snr, -1) - steps.reshape((1,) * log_snr.ndim + (-1,)))
    return np_.where(np_.isposinf(log_snr), 0, 1 + distance.argmin(-1))


def path(
    closed_form: Callable[[Any, Any], tuple[Any, Any, Any]], time_at: Callable[[Any, Any], Any], **facts: Any
) -> Schedule:
    """A continuous path from (t, numpy or jax.numpy) -> (alpha, sigma, log_snr) and (log_snr, ...) -> t."""

    def level(t: Any) -> NoiseLevel:
        if isinstance(t, jax.Array):
            return NoiseLevel(t, *closed_form(t.astype(jnp.float32), jnp))
        t = np.asarray(t, np.float64)
        if not (t >= 0).all():
            raise ValueError(f"got time {t}, expected numbers from 0 (clean data).")
        with np.errstate(divide="ignore"):
            return NoiseLevel(t, *closed_form(t, np))

    def inverse(log_snr: Any) -> Any:
        np_ = jnp if isinstance(log_snr, jax.Array) else np
        return time_at(np_.asarray(log_snr, np_.float32 if np_ is jnp else np.float64), np_)

    return Schedule(level, inverse, **facts)


def bisection(log_snr: Callable[[Any], Any], end: float) -> Callable[[Any, Any], Any]:
    """The time_at of a `path` whose log_snr(t) falls on [0, end], numpy or JAX: to float rounding, from above."""

    def time_at(wanted: Any, np_: Any) -> Any:
        def halved(_: Any, ends: tuple[Any, Any]) -> tuple[Any, Any]:
            low, high = ends
            middle = (low + high) / 2
            noisier = log_snr(middle) < wanted
            return np_.where(noisier, low, middle), np_.where(noisier, middle, high)

        ends = (np_.zeros_like(wanted), np_.full_like(wanted, end))
        if np_ is jnp:
            return jax.lax.fori_loop(0, 60, halved, ends)[1]
        for i in range(60):
            ends = halved(i, ends)
        return ends[1]

    return time_at
