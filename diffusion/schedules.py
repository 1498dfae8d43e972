"""Noise schedules: pure functions that return a `Schedule`, from which noise levels come.

A discrete chain has the times 0, 1, ..., T: 0 is clean data, 1..T are the steps of DDPM. Its tables are
made once, in float64, through log(1 - beta) sums, so that neither the first step (sigma^2 = 1e-4) nor the
last (alpha_bar = 4e-5) loses digits. `schedule.level(t)` of a numpy or Python t answers in float64, of a
JAX t in float32 (so it may be called inside jit).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from diffusion.types import NoiseLevel


@dataclass(frozen=True)
class Schedule:
    """A path from clean data to noise.

    level(t):          the NoiseLevel at time t; t and the answer's fields have the same shape.
    time_at(log_snr):  the time whose level is nearest to that log-SNR.
    num_steps:         T for a discrete chain, whose times are the integers 0..T.
    """

    level: Callable[[Any], NoiseLevel]
    time_at: Callable[[Any], Any]
    num_steps: int


def from_betas(betas: tuple[float, ...] | Float[np.ndarray, " num_steps"]) -> Schedule:
    """The chain with the given variances beta_1..beta_T (DDPM eq. 2), each strictly between 0 and 1."""
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or len(betas) < 1:
        raise ValueError(f"got betas of shape {betas.shape}, expected one dimension with at least one beta.")
    wrong = np.flatnonzero(~((betas > 0) & (betas < 1)))
    if len(wrong):
        t = wrong[0] + 1
        raise ValueError(
            f"beta_{t} of {len(betas)} is {betas[t - 1]:.6g}, expected every beta strictly between 0 and 1. "
            "Change the endpoints of the schedule or its number of steps."
        )
    log_alpha_bar = np.concatenate([[0.0], np.cumsum(np.log1p(-betas))])
    variance = -np.expm1(log_alpha_bar)
    with np.errstate(divide="ignore"):  # log(0) at clean data: log_snr = +inf is meant
        log_snr = log_alpha_bar - np.log(variance)
    table = NoiseLevel(np.arange(len(log_snr)), np.exp(log_alpha_bar / 2), np.sqrt(variance), log_snr)
    return Schedule(lambda t: _level(table, t), lambda x: _nearest(table, x), len(betas))


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


def _from_alpha_bar(alpha_bar: np.ndarray, beta_max: float) -> Schedule:
    """The chain of a given alpha_bar_0..alpha_bar_T (any scale), its betas capped as by Nichol & Dhariwal."""
    return from_betas(np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], beta_max))


def _check_num_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"got num_steps={num_steps}, expected at least 1; DDPM uses 1000.")


def linear_beta(num_steps: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> Schedule:
    """DDPM's schedule: betas evenly spaced from beta_1 to beta_T (Ho et al. 2020, section 4)."""
    _check_num_steps(num_steps)
    return from_betas(np.linspace(beta_1, beta_T, num_steps))


def linear_beta_scaled(num_steps: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> Schedule:
    """`linear_beta` with both endpoints times 1000 / num_steps, so that any length ends at about the same noise.

    Nichol & Dhariwal 2021 (arXiv:2102.09672) train 4000 steps this way. The endpoints are those at 1000 steps;
    below 21 steps the last beta passes 1, which is an error.
    """
    _check_num_steps(num_steps)
    return from_betas(np.linspace(beta_1, beta_T, num_steps) * (1000 / num_steps))


def quadratic_beta(num_steps: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> Schedule:
    """Betas whose square roots are evenly spaced (DDIM's "quad", Song et al. 2020, arXiv:2010.02502, code)."""
    _check_num_steps(num_steps)
    return from_betas(np.linspace(beta_1**0.5, beta_T**0.5, num_steps) ** 2)


def constant_beta(num_steps: int = 1000, beta: float = 0.01) -> Schedule:
    """The same beta at every step (one of the schedules that DDPM's section 4 considered).

    The default ends at alpha_bar = 4.3e-5, as the linear one does.
    """
    _check_num_steps(num_steps)
    return from_betas(np.full(num_steps, beta))


def cosine_alpha_bar(num_steps: int = 1000, s: float = 0.008, beta_max: float = 0.999) -> Schedule:
    """alpha_bar_t = f(t) / f(0), f(t) = cos^2((t / T + s) / (1 + s) pi / 2) (Nichol & Dhariwal 2021, eq. 17).

    Betas are capped at beta_max, which only touches the last few. The last level is very noisy: with a network
    that predicts eps, clip or threshold x_0.
    """
    _check_num_steps(num_steps)
    t = np.arange(num_steps + 1) / num_steps
    return _from_alpha_bar(np.cos((t + s) / (1 + s) * np.pi / 2) ** 2, beta_max)


def sigmoid_alpha_bar(
    num_steps: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0, beta_max: float = 0.999
) -> Schedule:
    """alpha_bar_t falls along a sigmoid from `start` to `end` with temperature tau (Jabri et al. 2022).

    arXiv:2212.11972, appendix B.
    """
    _check_num_steps(num_steps)
    if not start < end or tau <= 0:
        raise ValueError(f"got start={start}, end={end}, tau={tau}; expected start < end and tau > 0.")
    t = np.arange(num_steps + 1) / num_steps
    falling = 1 / (1 + np.exp((start + (end - start) * t) / tau))
    return _from_alpha_bar(falling - falling[-1], beta_max)
