"""Loss weights, as functions of the noise level, that mean the same for every parameterization.

The papers state their weights for the error of eps, of x_0 or of v, and the same formula on another error is
another loss. Here a weight is always put on one error, the squared error of x_0, and `losses.py` carries it
over to the network's output through x_0_hat - x_0 = c_out (F - target). With SNR = alpha^2 / sigma^2, an
error of eps counts as |eps_hat - eps|^2 = SNR |x_0_hat - x_0|^2.

`constant` is the exception that users expect: no weight at all on whatever the network predicts.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffusion.parameterization import Parameterization
from diffusion.schedules import Schedule
from diffusion.sde import log_snr_rate
from diffusion.types import NoiseLevel, check_positive, float32, namespace

Weight = Callable[[NoiseLevel, Parameterization], Any]
"""(level, parameterization) -> the factor on |F - target|^2, of the level's shape."""


def _on_x_0(weight: Callable[[NoiseLevel], Any]) -> Weight:
    """The weight on the network's error that puts weight(level) on |x_0_hat - x_0|^2."""
    return lambda level, param: weight(level) * param.coefs(level)[2] ** 2


def constant() -> Weight:
    """1 on the network's own target: L_simple when it predicts eps (DDPM eq. 14)."""
    return lambda level, param: namespace(level.log_snr).ones_like(level.log_snr)


def min_snr(gamma: float = 5.0) -> Weight:
    """min(SNR, gamma) on the error of x_0 (Hang et al. 2023, arXiv:2303.09556, section 3.4)."""
    check_positive("gamma", gamma)
    return _on_x_0(lambda level: namespace(level.log_snr).minimum(_snr(level), gamma))


def p2(gamma: float = 1.0, k: float = 1.0) -> Weight:
    """(k + SNR)^-gamma on the error of eps (Choi et al. 2022, arXiv:2204.00227, eq. 8)."""
    check_positive("k", k)
    return _on_x_0(lambda level: _snr(level) * (k + _snr(level)) ** -gamma)


def vlb(schedule: Schedule) -> Weight:
    """The true bound's, on the error of x_0: T (SNR_{t-1} - SNR_t) / 2 on a chain (Kingma et al. 2021, eq. 13).

    On a continuous path it is the limit of many steps, -SNR'(t) end / 2 (their eq. 17).

    With t uniform on 1..T the expected loss is sum_t L_{t-1} of the variational bound, in nats per dimension,
    for reverse variances equal to the posterior's. At t = 1 that variance is 0 and the term infinite; as in
    DDPM the last step then has the forward kernel's variance, whose Gaussian log-likelihood weighs the error
    by 1 / (2 sigma_1^2).
    """
    if schedule.num_steps is None:
        return _on_x_0(lambda level: -schedule.end / 2 * jnp.exp(level.log_snr) * log_snr_rate(schedule, level.t))
    t = np.arange(1, schedule.num_steps + 1)
    now, to = schedule.level(t), schedule.level(t - 1)
    last = np.full(1, 1 / (2 * now.sigma[0] ** 2))
    others = np.exp(to.log_snr[1:]) * -np.expm1(now.log_snr[1:] - to.log_snr[1:]) / 2
    # log: over a cosine chain the weights span 14 orders of magnitude, their product with c_out^2 only a few
    log_weight = np.log(schedule.num_steps * np.concatenate([last, others]))

    def weight(level: NoiseLevel) -> Any:
        np_ = namespace(level.log_snr)
        table = float32(log_weight) if np_ is not np else log_weight
        return np_.exp(table[level.t - 1])

    return _on_x_0(weight)


def _snr(level: NoiseLevel) -> Any:
    return namespace(level.log_snr).exp(level.log_snr)
