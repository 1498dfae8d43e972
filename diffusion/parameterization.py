"""What the network is asked to predict, as one triple of coefficients each.

Whatever the network's output F stands for, the estimate of the clean data is linear in it:

    x_0_hat = c_skip x_t + c_out F(c_in x_t, cond).

The triple (c_in, c_skip, c_out) is all that a sampler or a loss needs; x_0 and eps are the hub, every
parameterization a spoke, and there are no pairwise converters. Since F and its target share c_skip,

    x_0_hat - x_0 = c_out (F - target),

which is how a weight on the error of x_0 becomes a weight on the error of F (`weights.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from diffusion import gaussian
from diffusion.schedules import Schedule
from diffusion.types import Array, Cond, NoiseLevel, Params, Prediction, Step, expand, float32, namespace

LEARNED = ("range", "direct")
"""How a variance can be learned: as the place of a step's log-variance between DDPM's two, or as Var[x_0 | x_t]."""


@dataclass(frozen=True)
class Parameterization:
    """The meaning of a network's output.

    coefs(level) -> (c_in, c_skip, c_out), each of the level's shape.
    target(x_0, eps, level) -> what F should be, of x_0's shape.
    variance: what a second half of the output's channels says of the variance, one of LEARNED; None where it is fixed.
    cond(level) -> what the network is told of the level, of the level's shape; `build` puts the schedule's own
        way in its place (`Schedule.embed`).
    """

    coefs: Callable[[NoiseLevel], tuple[Any, Any, Any]]
    target: Callable[[Any, Any, NoiseLevel], Any]
    cond: Callable[[NoiseLevel], Any] = lambda level: level.t
    variance: str | None = None

    def ask(
        self, apply: Callable[..., Any], params: Params, x_t: Array, level: NoiseLevel, *, cond: Cond, key: Any = None
    ) -> Any:
        """F(c_in x_t, cond): the network's output at x_t, told of the level; apply and key as in `Network.apply`."""
        c_in = expand(self.coefs(level)[0], x_t)
        return apply(params, c_in * x_t, self.cond(level), cond=cond, key=key)

    def halves(self, output: Any) -> tuple[Any, Any]:
        """(F, what the rest of the channels says of the variance, of F's shape; None where it is not learned)."""
        if self.variance is None:
            return output, None
        F, V = jnp.split(output, 2, axis=-1)
        return F, V

    def predict(self, output: Any, x_t: Float[Array, "*shape"], level: NoiseLevel) -> Prediction:
        """The Prediction (x_0, eps) that a network's output means at x_t; both of x_t's shape.

        eps = (x_t - alpha x_0) / sigma with x_0's coefficients put in by hand, so that a network which
        predicts eps gets its own eps back instead of a difference of large numbers.

        Where the variance is learned, the output has twice x_t's channels. Its second half V is var_frac = (V + 1) / 2
        with "range" (as in the code of Nichol & Dhariwal 2021; eq. 15 has v for it, which need not lie in [0, 1]), and
        with "direct" log_var_x_0 = V + log(sigma^2 / (alpha^2 + sigma^2)), where V = 0 is right for data ~ N(0, I).
        """
        F, V = self.halves(output)
        _, c_skip, c_out = self.coefs(level)
        eps_skip, eps_out = (1 - level.alpha * c_skip) / level.sigma, -level.alpha * c_out / level.sigma
        log_prior = -namespace(level.log_snr).logaddexp(0, level.log_snr)  # log(sigma^2 / (alpha^2 + sigma^2))
        return Prediction(
            x_0=expand(c_skip, x_t) * x_t + expand(c_out, x_t) * F,
            eps=expand(eps_skip, x_t) * x_t + expand(eps_out, x_t) * F,
            var_frac=(V + 1) / 2 if self.variance == "range" else None,
            log_var_x_0=expand(log_prior, x_t) + V if self.variance == "direct" else None,
        )


def eps() -> Parameterization:
    """Predicts the noise (DDPM, Ho et al. 2020, eq. 11): x_0_hat = (x_t - sigma F) / alpha.

    Undefined at pure noise (alpha = 0), where x_t says nothing of x_0 through eps.
    """
    return Parameterization(
        coefs=lambda level: (_one(level), 1 / level.alpha, -level.sigma / level.alpha),
        target=lambda x_0, eps, level: eps,
    )


def x_0() -> Parameterization:
    """Predicts the clean data: x_0_hat = F (DDPM section 3.2 tried it; Salimans & Ho 2022 distil with it)."""
    return Parameterization(
        coefs=lambda level: (_one(level), 0 * level.alpha, _one(level)),
        target=lambda x_0, eps, level: x_0,
    )


def v() -> Parameterization:
    """Predicts the velocity v = alpha eps - sigma x_0 (Salimans & Ho 2022, arXiv:2202.00512, section 4).

    x_0_hat = (alpha x_t - sigma F) / (alpha^2 + sigma^2); the denominator is 1 on variance-preserving paths.
    """

    def coefs(level: NoiseLevel) -> tuple[Any, Any, Any]:
        norm = level.alpha**2 + level.sigma**2
        return _one(level), level.alpha / norm, -level.sigma / norm

    return Parameterization(coefs, gaussian.velocity)


def score() -> Parameterization:
    """Predicts the score -eps / sigma (Song et al. 2020, arXiv:2011.13456): x_0_hat = (x_t + sigma^2 F) / alpha.

    Its targets grow as 1 / sigma: with weight "constant" the cleanest levels dominate the loss. A weight
    that is a function of the log-SNR ("min_snr", "p2", "vlb") is unaffected.
    """
    return Parameterization(
        coefs=lambda level: (_one(level), 1 / level.alpha, level.sigma**2 / level.alpha),
        target=lambda x_0, eps, level: gaussian.score(eps, level),
    )


def edm(sigma_data: float = 0.5) -> Parameterization:
    """EDM's preconditioning (Karras et al. 2022, arXiv:2206.00364, table 1), on any path.

    It keeps input and target at unit variance at every level if the data's standard deviation is sigma_data. With
    s = sigma / alpha in the place of their sigma: c_skip = sigma_data^2 / (s^2 + sigma_data^2), and so on. Their
    loss weight 1 / c_out^2 on the error of x_0 is weight "constant" here.
    """
    if not sigma_data > 0:
        raise ValueError(f"got sigma_data={sigma_data}, expected the data's standard deviation, such as 0.5.")

    def coefs(level: NoiseLevel) -> tuple[Any, Any, Any]:
        variance = level.sigma**2 + level.alpha**2 * sigma_data**2
        return variance**-0.5, level.alpha * sigma_data**2 / variance, level.sigma * sigma_data * variance**-0.5

    def target(x_0: Any, eps: Any, level: NoiseLevel) -> Any:
        scale = (level.sigma**2 + level.alpha**2 * sigma_data**2) ** -0.5 / sigma_data
        return expand(level.sigma * scale, x_0) * x_0 - expand(level.alpha * sigma_data**2 * scale, x_0) * eps

    return Parameterization(coefs, target)


def flow() -> Parameterization:
    """Predicts the velocity of straight lines, eps - x_0 (Lipman et al. 2022, arXiv:2210.02747), on any path.

    x_0_hat = (x_t - sigma F) / (alpha + sigma); on the flow schedule alpha + sigma = 1 and F = dx_t / dt.
    """

    def coefs(level: NoiseLevel) -> tuple[Any, Any, Any]:
        both = level.alpha + level.sigma
        return _one(level), 1 / both, -level.sigma / both

    return Parameterization(coefs, lambda x_0, eps, level: eps - x_0)


def mean(schedule: Schedule) -> Parameterization:
    """Predicts the posterior mean of x_{t-1} given x_t and x_0 (DDPM section 3.2, "mu tilde"; eq. 7).

    With mu = a x_0 + b x_t, x_0_hat = (F - b x_t) / a. The step t -> t - 1 is that of the training chain, so
    the coefficients come from its tables, and sampling on any grid stays right.
    """
    t = np.arange(1, schedule.chain_length("parameterization.name=mean") + 1)
    now, to = schedule.level(t), schedule.level(t - 1)
    chain = Step(now, to, to.log_snr - now.log_snr)
    ones, zeros = np.ones(len(t)), np.zeros(len(t))
    of_x_0, of_x_t = gaussian.posterior(ones, zeros, chain)[0], gaussian.posterior(zeros, ones, chain)[0]
    table = (-of_x_t / of_x_0, 1 / of_x_0)

    def coefs(level: NoiseLevel) -> tuple[Any, Any, Any]:
        c_skip, c_out = (column[level.t - 1] for column in (float32(table) if _on_device(level) else table))
        return _one(level), c_skip, c_out

    def target(x_0: Any, eps: Any, level: NoiseLevel) -> Any:
        _, c_skip, c_out = coefs(level)
        return (x_0 - expand(c_skip, x_0) * gaussian.diffuse(x_0, eps, level)) / expand(c_out, x_0)

    return Parameterization(coefs, target)


def _on_device(level: NoiseLevel) -> bool:
    return isinstance(level.t, jax.Array)


def _one(level: NoiseLevel) -> Any:
    return jnp.ones_like(level.alpha) if _on_device(level) else np.ones_like(level.alpha)
