"""The variational bound of a chain, term by term (Ho et al. 2020, arXiv:2006.11239, eq. 5).

A model that undoes a chain step by step, p(x_0) = int p(x_T) prod p(x_to | x_now), cannot say its log-likelihood, but
bounds it from above:

    -log p(x_0) <= KL(q(x_T | x_0) || p(x_T))                                           L_T    (`prior`)
                   + sum over the steps of KL(q(x_to | x_now, x_0) || p(x_to | x_now))  L_t-1  (`divergence`)
                   - log p(x_0 | x_1)                                                   L_0    (`surprise`)

in expectation over x_now ~ q. Every piece is Gaussian but the last, which is where images of a few hundred
values meet a density: its Gaussian is integrated over the bin of each value (`decoder.py`), so that the bound is one
of a probability, in bits that a compressor could reach.

A step is a `Step`, so any grid is a chain: all steps of the training's, a respaced one, or a path cut into pieces.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from diffusion import decoder, gaussian
from diffusion.schedules import Schedule
from diffusion.types import BITS, NoiseLevel, Prediction, Step, expand, float32, mean_per_sample, namespace

ChainTerm = Callable[[Prediction, Any, NoiseLevel], Any]
"""(prediction, x_0, level) -> an unbiased estimate of the bound from the level's own term, [batch]."""

_BELOW_SMALL = 40.0  # a learned log-variance that lies lower counts as this: exp(40) of a KL leaves float32 room for T


def divergence(
    prediction: Prediction, x_0: Float[Any, "*shape"], step: Step, log_small: Any, *, variance: str
) -> Float[Any, " batch"]:
    """KL(q(x_to | x_t, x_0) || p(x_to | x_t)) in nats per dimension, [batch], of a step whose `to` is noisy (L_t-1).

    prediction: at an x_t ~ q(x_now | x_0). step: fields [] or [batch]. variance: that of p, of `gaussian.VARIANCES`.
    log_small:  the step's own small log-variance, of `log_small`.
    """
    return _divergence(prediction, x_0, step, log_small, _log_variance(prediction, x_0, step, log_small, variance))


def surprise(
    prediction: Prediction, x_0: Float[Any, "*shape"], step: Step, log_small: Any, *, variance: str, num_values: int
) -> Float[Any, " batch"]:
    """-log p(x_0 | x_t) in nats per dimension, [batch], of the step to clean data (L_0), whose mean is x_0_hat.

    num_values: of the data set (`decoder.log_prob`). A fixed variance, "small" or "large", is the same here, log_small:
    DDPM's code takes the second step's small one for both, "to get a better decoder log likelihood".
    """
    log_var = _log_variance(prediction, x_0, step, log_small, _of_surprise(variance))
    return -mean_per_sample(decoder.log_prob(x_0, prediction.x_0, log_var, num_values))


def term(
    prediction: Prediction, x_0: Float[Any, "*shape"], step: Step, log_small: Any, *, variance: str, num_values: int
) -> Float[Any, " batch"]:
    """The bound's term for any step, [batch]: `surprise` where `to` is clean, else `divergence`."""
    noisy = step.to.sigma > 0
    small, at_noisy, at_clean = (
        _log_variance(prediction, x_0, step, log_small, which) for which in ("small", variance, _of_surprise(variance))
    )
    # what is not chosen is given harmless numbers: `where` alone would let its NaN into the gradient
    at_noisy = jnp.where(expand(noisy, x_0), at_noisy, small)
    at_clean = jnp.where(expand(noisy, x_0), small, at_clean)
    of_clean = -mean_per_sample(decoder.log_prob(x_0, prediction.x_0, at_clean, num_values))
    return jnp.where(noisy, _divergence(prediction, x_0, step, log_small, at_noisy), of_clean)


def _divergence(prediction: Prediction, x_0: Any, step: Step, log_small: Any, log_var: Any) -> Any:
    # both means have the same share of x_t
    apart = expand(step.to.alpha * -jnp.expm1(-step.h), x_0) * (x_0 - prediction.x_0)
    small = jnp.broadcast_to(expand(log_small, x_0), x_0.shape)
    return mean_per_sample(gaussian.kl(apart, small, jnp.zeros_like(apart), log_var))


def _log_variance(prediction: Prediction, x_0: Any, step: Step, log_small: Any, variance: str) -> Any:
    """Of p(x_to | x_t), of x_0's shape; counted as 40 below the small one where it lies lower."""
    log_var = gaussian.reverse_log_variance(prediction, step, variance, log_small)
    log_var = jnp.broadcast_to(expand(log_var, x_0), x_0.shape)
    return jnp.maximum(log_var, expand(log_small, x_0) - _BELOW_SMALL) if variance == "learned" else log_var


def _of_surprise(variance: str) -> str:
    return "small" if variance == "large" else variance


def prior(x_0: Float[Any, "*shape"], level: NoiseLevel) -> Float[Any, " batch"]:
    """L_T, KL(q(x_T | x_0) || N(0, (alpha^2 + sigma^2) I)) in nats per dimension, [batch].

    The Gaussian is the one that sampling starts from; of unit variance where the schedule preserves it.
    """
    alpha, sigma = level.alpha, level.sigma
    np_ = namespace(alpha)
    total = alpha**2 + sigma**2
    log_ratio = -np_.log1p(alpha**2 / sigma**2)  # log(sigma^2 / total), exact where almost nothing of x_0 is left
    variances = (np_.expm1(log_ratio) - log_ratio) / 2
    return alpha**2 / total * mean_per_sample(x_0**2) / 2 + variances


def log_small(steps: Step) -> Float[np.ndarray, " n"]:
    """The small log-variance of each step of a grid, float64; that of the last one, to clean data, is the one before's.

    It is -inf otherwise, since x_0 is known in the posterior; where the variance is learned as a range it is its lower
    end (Nichol & Dhariwal 2021, arXiv:2102.09672, code). A grid of one step has the large one there.
    """
    with np.errstate(divide="ignore"):
        small, large = gaussian.log_variances(steps)
    clean = np.asarray(steps.to.sigma) == 0
    before = np.append(large[:1], small[:-1])
    return np.where(clean, before, small)


def of_chain(schedule: Schedule, *, variance: str, num_values: int) -> ChainTerm:
    """term(prediction, x_0, level) -> T L_{t-1}, bits per dimension, [batch], for the level t of the chain.

    With t uniform on 1..T its expectation is the bound without L_T, which nothing trains. JAX only.
    """
    T = schedule.chain_length("the bound's sum over steps")
    t = np.arange(T, 0, -1)
    now, to = schedule.level(t), schedule.level(t - 1)
    steps = Step(now, to, to.log_snr - now.log_snr)
    columns = float32((steps, log_small(steps)))

    def at(prediction: Prediction, x_0: Any, level: NoiseLevel) -> Any:
        step, small = jax.tree.map(lambda column: column[T - level.t], columns)
        return T * BITS * term(prediction, x_0, step, small, variance=variance, num_values=num_values)

    return at
