"""The variational bound of a continuous path, in bits/dim."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from diffusion import bound, continuous_bound
from diffusion.gaussian import diffuse
from diffusion.keys import each_at_step, each_stream, normal
from diffusion.schedules import Schedule, variance_preserving
from diffusion.types import BITS, AnyDenoiser, NoiseLevel, memoryless

NOISIEST = -20.0
"""The model begins here where a path goes on to pure noise: what is left out is 2e-9 bits of prior."""

CLEAN = 100.0
"""A path whose log-SNR passes this near t = 0 reaches clean data; the others have a least noise."""


class ContinuousBound(NamedTuple):
    """total = prior + reconstruction + diffusion, each [batch], in bits/dim (see `continuous_bound`)."""

    total: Any
    prior: Any
    reconstruction: Any
    diffusion: Any


def continuous_vlb_bpd(
    denoise: AnyDenoiser,
    x_0: Float[Array, "batch *shape"],
    schedule: Schedule,
    keys: Key[Array, " batch"],
    *,
    num_values: int,
    start: float | None = None,
    num_terms: int = 32,
) -> ContinuousBound:
    """An unbiased estimate of the bound on -log2 p(x_0) per dimension, of each sample (Kingma et al. 2021, eq. 11-17).

    The diffusion term is the mean over num_terms log-SNRs, one drawn from each of as many equal slices of the path's
    log-SNRs, so that a path's own times do not matter; each costs one evaluation of the batch. More terms lower
    the variance and no expectation. Rows depend on their own key alone.

    num_values: that a pixel can have, evenly spaced in [-1, 1]: 256 for 8-bit images. 0 for continuous data, for whom
        the result is a bound on minus the log-density, which may be negative.
    start:      the log-SNR where the data begins; by default where the path itself begins, if it has a least noise
        (ve_geometric's sigma_min, a learned end), else `continuous_bound.least_noisy(num_values)`. Every start gives
        a bound.

    A path that ends in pure noise is begun at the log-SNR -20. A self-conditioned denoiser is given no estimate.
    ValueError for a chain, and for a start that the path does not reach.
    """
    denoise_alone, (first, last) = memoryless(denoise, x_0), log_snr_ends(schedule, num_values, start)
    if num_terms < 1:
        raise ValueError(f"got num_terms={num_terms}, expected at least 1.")

    def term(i: Any) -> Any:
        own = each_at_step(keys, i)
        share = (i + jax.vmap(jax.random.uniform)(each_stream(own, "level"))) / num_terms
        t = schedule.time_at(first + share * (last - first))
        level = schedule.level(jnp.maximum(t, jnp.finfo(jnp.float32).tiny))  # t = 0 is clean where a path jumps
        eps = normal(each_stream(own, "noise"), x_0.shape[1:])
        return continuous_bound.diffusion(eps, denoise_alone(diffuse(x_0, eps, level), level).eps, first - last)

    eps = normal(each_stream(keys, "reconstruction"), x_0.shape[1:])
    prior = BITS * bound.prior(x_0, NoiseLevel(None, *variance_preserving(jnp.float32(last))))
    reconstruction = BITS * continuous_bound.reconstruction(x_0, eps, first, num_values)
    diffusion = BITS * jax.lax.map(term, jnp.arange(num_terms)).mean(0)
    return ContinuousBound(prior + reconstruction + diffusion, prior, reconstruction, diffusion)


def log_snr_ends(schedule: Schedule, num_values: int, start: float | None = None) -> tuple[float, float]:
    """The log-SNRs of the least noisy and of the noisiest level that the bound of a continuous path is of."""
    if schedule.num_steps is not None:
        raise ValueError(
            f"the schedule is a chain of {schedule.num_steps} steps, whose bound has as many terms: use vlb_bpd."
        )
    with np.errstate(divide="ignore"):
        own, last = (float(schedule.level(np.float64(t) * schedule.end).log_snr) for t in (1e-300, 1))
    last = max(last, NOISIEST)
    if start is None:
        start = own if own < CLEAN else continuous_bound.least_noisy(num_values)
    if not last < start <= own:
        raise ValueError(
            f"got start={start:.6g}, expected a log-SNR above {last:.4g}, where the path ends, and of at most "
            f"{own:.6g}, where it begins."
        )
    return start, last
