"""What the exponential integrators share (DPM-Solver++, UniPC).

In log-SNR time the probability-flow ODE is linear but for x_0_hat, so a step can be exact in all but that
(Lu et al. 2022, arXiv:2211.01095, eq. 9). With lam = log_snr / 2, tau = lam - lam_now and h = lam_to - lam_now,

    x_to = (sigma_to / sigma_now) x_now + alpha_to int_0^h exp(tau - h) x_0_hat(tau) dtau.

A solver is a guess of x_0_hat(tau): constant (first order, DDIM), or the polynomial through estimates made at
other levels. Here h is half of `Step.h`. At a clean `to`, h is infinite and only the constant guess is finite.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from diffusion.types import Step, expand


def advance(x: Any, x_0: Any, step: Step) -> Any:
    """x at step.to for a constant x_0: (sigma_to / sigma_now) x + alpha_to (1 - exp(-h)) x_0."""
    kept = -jnp.expm1(-step.h / 2)
    return expand(step.to.sigma / step.now.sigma, x) * x + expand(step.to.alpha * kept, x) * x_0


def through_points(x: Any, step: Step, taus: Sequence[Any], estimates: Sequence[Any]) -> Any:
    """x at step.to for the polynomial x_0(tau) through two or three points; taus[0] must be 0.

    The integrals of 1, tau and tau^2 against exp(tau - h) are I_0 = 1 - exp(-h), I_1 = h - I_0, I_2 = h^2 - 2 I_1;
    Newton's form is f0 + d1 tau + d2 tau (tau - tau_1).
    """
    h = step.h / 2
    first = h + jnp.expm1(-h)
    slope = (estimates[1] - estimates[0]) / taus[1]
    x = advance(x, estimates[0], step)
    if len(taus) == 2:
        return x + step.to.alpha * first * slope
    second = h**2 - 2 * first
    curve = ((estimates[2] - estimates[1]) / (taus[2] - taus[1]) - slope) / taus[2]
    return x + step.to.alpha * (first * (slope - curve * taus[1]) + second * curve)
