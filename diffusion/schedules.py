"""Noise schedules: pure functions that return a `Schedule`, from which noise levels come.

A discrete chain has the times 0, 1, ..., T: 0 is clean data, 1..T are the steps of DDPM. Its tables are
made once, in float64, through log(1 - beta) sums, so that neither the first step (sigma^2 = 1e-4) nor the
last (alpha_bar = 4e-5) loses digits.

A continuous path has the times 0 (clean) to `end`, and closed forms for its levels:

    vp_linear       alpha^2 = exp(-B), sigma^2 = 1 - exp(-B), B(t) = integral of beta    DDPM's limit of many steps
    sub_vp_linear   alpha^2 = exp(-B), sigma = 1 - exp(-B)
    ve_geometric    alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t
    edm             alpha = 1, sigma = t
    flow            alpha = 1 - t, sigma = t                                             straight lines

`schedule.level(t)` of a numpy or Python t answers in float64, of a JAX t in float32 (so it may be called
inside jit). `sde.py` reads drift, diffusion and the probability flow off any continuous path.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from diffusion.paths import Schedule, bisection, chain, path
from diffusion.types import NoiseLevel, check_positive, namespace


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
    return chain(np.exp(log_alpha_bar / 2), np.sqrt(variance), log_snr)


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


def ve_ladder(num_steps: int = 10, sigma_min: float = 0.01, sigma_max: float = 1.0) -> Schedule:
    """NCSN's geometric ladder of noise on unscaled data: sigma_1 = sigma_min .. sigma_T = sigma_max, alpha = 1.

    Song & Ermon 2019, arXiv:1907.05600, section 4. Denoising score matching on it is the loss with
    parameterization "eps" and weight "constant" (their lambda = sigma^2).
    """
    _check_num_steps(num_steps)
    _check_range("sigma", sigma_min, sigma_max)
    sigma = np.append(0.0, np.geomspace(sigma_min, sigma_max, num_steps))
    with np.errstate(divide="ignore"):
        ladder = chain(np.ones_like(sigma), sigma, -2 * np.log(sigma))
    return dataclasses.replace(ladder, embed=_quarter_log_sigma)


def _integral_of_beta(beta_min: float, beta_max: float) -> tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]:
    """(B(t), its inverse) for beta(t) = beta_min + t (beta_max - beta_min)."""
    _check_range("beta", beta_min, beta_max)
    slope = beta_max - beta_min
    return (
        lambda t: t * (beta_min + t * slope / 2),
        lambda b, np_: 2 * b / (beta_min + np_.sqrt(beta_min**2 + 2 * slope * b)),
    )


def vp_linear(beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    """The variance-preserving SDE, t in [0, 1] (Song et al. 2020, arXiv:2011.13456, eq. 32-33).

    DDPM's chain with T steps tends to it, but is not it: at T = 1000 log-SNRs differ by up to 0.095.
    """
    b, time_of = _integral_of_beta(beta_min, beta_max)
    return path(
        lambda t, np_: (np_.exp(-b(t) / 2), np_.sqrt(-np_.expm1(-b(t))), -np_.log(np_.expm1(b(t)))),
        lambda log_snr, np_: time_of(np_.logaddexp(0, -log_snr), np_),
        embed=lambda level: 999 * level.t,
    )


def sub_vp_linear(beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    """The sub-VP SDE, t in [0, 1]: the same alpha, sigma = 1 - alpha^2 (Song et al. 2020, eq. 29)."""
    b, time_of = _integral_of_beta(beta_min, beta_max)
    return path(
        lambda t, np_: (np_.exp(-b(t) / 2), -np_.expm1(-b(t)), -b(t) - 2 * np_.log(-np_.expm1(-b(t)))),
        lambda log_snr, np_: time_of(2 * np_.arcsinh(np_.exp(-log_snr / 2) / 2), np_),
        embed=lambda level: 999 * level.t,
    )


def ve_geometric(sigma_min: float = 0.02, sigma_max: float = 100.0) -> Schedule:
    """The variance-exploding SDE, t in [0, 1]: sigma = sigma_min (sigma_max / sigma_min)^t (Song et al. 2020, eq. 30).

    It jumps: t = 0 is clean data, and sigma_min its limit from above (their appendix C). The defaults are the
    published 0.01 and 50 for data in [0, 1], doubled for data in [-1, 1].
    """
    _check_range("sigma", sigma_min, sigma_max)
    low, ratio = np.log(sigma_min), np.log(sigma_max / sigma_min)

    def closed_form(t: Any, np_: Any) -> tuple[Any, Any, Any]:
        log_sigma = low + t * ratio
        clean = t == 0
        return np_.ones_like(t), np_.where(clean, 0, np_.exp(log_sigma)), np_.where(clean, np_.inf, -2 * log_sigma)

    def time_at(log_snr: Any, np_: Any) -> Any:
        return np_.where(np_.isposinf(log_snr), 0.0, np_.maximum((-log_snr / 2 - low) / ratio, 0.0))

    return path(closed_form, time_at, embed=_quarter_log_sigma)


def edm(sigma_max: float = 80.0) -> Schedule:
    """sigma = t on unscaled data, t in [0, sigma_max] (Karras et al. 2022, arXiv:2206.00364, table 1)."""
    return path(
        lambda t, np_: (np_.ones_like(t), t, -2 * np_.log(t)),
        lambda log_snr, np_: np_.exp(-log_snr / 2),
        end=check_positive("sigma_max", sigma_max),
        embed=_quarter_log_sigma,
    )


def flow(shift: float = 1.0) -> Schedule:
    """Straight lines between data and noise: sigma = s, alpha = 1 - s (Lipman et al. 2022, arXiv:2210.02747).

    s = shift t / (1 + (shift - 1) t), t in [0, 1]. shift = sqrt(m / n) carries a schedule made for n pixels over to m
    (Esser et al. 2024, arXiv:2403.03206, eq. 23). The end is pure noise, alpha = 0.
    """
    check_positive("shift", shift)
    return path(
        lambda t, np_: (
            (1 - t) / (1 + (shift - 1) * t),
            shift * t / (1 + (shift - 1) * t),
            2 * (np_.log1p(-t) - np_.log(shift * t)),
        ),
        lambda log_snr, np_: 1 / (1 + shift * np_.exp(log_snr / 2)),
        embed=lambda level: 1000 * level.sigma,
    )


def from_log_snr(log_snr: Callable[[Any], Any], end: float = 1.0) -> Schedule:
    """The variance-preserving path of a given log-SNR, which falls strictly on [0, end] (Kingma et al. 2021).

    log_snr(t) takes numpy and JAX arrays. time_at finds times by bisection, to float rounding.
    """

    def closed_form(t: Any, np_: Any) -> tuple[Any, Any, Any]:
        return variance_preserving(log_snr(t))

    return path(closed_form, bisection(log_snr, end), end=end, embed=lambda level: 1000 * level.t / end)


def variance_preserving(log_snr: Any) -> tuple[Any, Any, Any]:
    """(alpha, sigma, log_snr) with alpha^2 + sigma^2 = 1: alpha^2 = sigmoid(log_snr), sigma^2 = sigmoid(-log_snr)."""
    np_ = namespace(log_snr)
    return np_.exp(-np_.logaddexp(0, -log_snr) / 2), np_.exp(-np_.logaddexp(0, log_snr) / 2), log_snr


def respace(schedule: Schedule, times: tuple[int, ...] | Int[np.ndarray, " n"]) -> Schedule:
    """The shorter chain that visits only these times of a chain, rising; a network is told the old ones.

    Nichol & Dhariwal 2021, section 4. Its levels are the old chain's, so its betas follow from them.
    """
    old = np.append(0, np.asarray(times, int))
    if schedule.chain_length("respace") < old[-1] or (np.diff(old) < 1).any():
        raise ValueError(f"got times {times}, expected rising integers in 1..{schedule.num_steps}.")
    shorter = chain(*schedule.level(old)[1:])

    def embed(level: NoiseLevel) -> Any:
        times = jnp.asarray(old) if isinstance(level.t, jax.Array) else old
        return schedule.embed(level._replace(t=times[level.t]))

    return dataclasses.replace(shorter, embed=embed)


def shift_log_snr(schedule: Schedule, shift: float) -> Schedule:
    """The variance-preserving path whose log-SNR is higher by `shift` at every time.

    Hoogeboom et al. 2023 (arXiv:2301.11093, section 3.1) shift by 2 log(64 / size) for larger images.
    """

    def level(t: Any) -> NoiseLevel:
        old = schedule.level(t)
        return NoiseLevel(old.t, *variance_preserving(old.log_snr + shift))

    middle = schedule.level(schedule.num_steps or schedule.end / 2)
    if abs(middle.alpha**2 + middle.sigma**2 - 1) > 1e-9:
        raise ValueError(
            "shift_log_snr is for variance-preserving schedules; elsewhere change sigma's range, or flow's shift."
        )
    return dataclasses.replace(schedule, level=level, time_at=lambda log_snr: schedule.time_at(log_snr - shift))


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """The chain rescaled to end in pure noise, its first step unchanged (Lin et al. 2023, arXiv:2305.08891).

    alpha_t -> (alpha_t - alpha_T) alpha_1 / (alpha_1 - alpha_T), their algorithm 1. Train it with v, x_0 or flow: eps
    says nothing at its end.
    """
    T = schedule.chain_length("zero_terminal_snr")
    if T < 2:
        raise ValueError("zero_terminal_snr needs a chain of at least 2 steps.")
    old = schedule.level(np.arange(1, T + 1)).alpha
    alpha = np.append(1.0, (old - old[-1]) * old[0] / (old[0] - old[-1]))
    sigma = np.sqrt((1 - alpha) * (1 + alpha))
    with np.errstate(divide="ignore"):
        rescaled = chain(alpha, sigma, 2 * (np.log(alpha) - np.log(sigma)))
    return dataclasses.replace(rescaled, embed=schedule.embed)


def _quarter_log_sigma(level: NoiseLevel) -> Any:
    """EDM's c_noise, ln(sigma / alpha) / 4 (Karras et al. 2022, table 1)."""
    return -level.log_snr / 8


def _check_range(name: str, low: float, high: float) -> None:
    if not 0 < low < high:
        raise ValueError(f"got {name}_min={low}, {name}_max={high}; expected 0 < {name}_min < {name}_max.")
