"""The bound on -log p(x_0) of infinitely many steps, term by term (Kingma et al. 2021, "VDM", arXiv:2107.00630).

A chain's bound falls when its steps are cut in half; in the limit of a continuous path it is

    -log p(x_0) <= prior + reconstruction + diffusion                                                   (eq. 11)

    prior           KL(q(x_end | x_0) || N(0, (alpha^2 + sigma^2) I)), x_end being the noisiest level (`bound.prior`)
    reconstruction  E[-log P(x_0 | x_1)], x_1 being the least noisy level
    diffusion       1/2 int E|eps - eps_hat(x_t)|^2 d log_snr, from the noisiest log-SNR to the least noisy   (eq. 17)

The model starts at the noise that `sampling.generate` starts from. Everything depends on log-SNRs alone: between the
same two ends every path has the same bound (their section 5.1), and only the variance of an estimate of the integral
depends on how its levels are drawn.

All terms are in nats per dimension, one for each sample: the mean over its values. `types.BITS` turns them into bits.
"""

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion import decoder
from diffusion.types import mean_per_sample


def diffusion(
    eps: Float[Array, "batch *shape"], eps_hat: Float[Array, "batch *shape"], rate: Any
) -> Float[Array, " batch"]:
    """rate / 2 times the mean of |eps - eps_hat|^2: one draw of the integral (eq. 17).

    rate: log-SNR per unit of what the level was drawn from uniformly, [] or [batch]: the difference of the two ends for
    a uniform log-SNR; (end - start) (-d log_snr / dt) for a uniform time.
    """
    return rate / 2 * mean_per_sample(jnp.square(eps - eps_hat))


def reconstruction(
    x_0: Float[Array, "batch *shape"], eps: Float[Array, "batch *shape"], log_snr: Any, num_values: int
) -> Float[Array, " batch"]:
    """-log P(x_0 | x_1), x_1 = alpha x_0 + sigma eps being the least noisy level, of this log-SNR, [] or [batch].

    P is a probability over the num_values evenly spaced values in [-1, 1] that a pixel can have, of which x_0 is one
    (`decoder.log_posterior`).

    num_values = 0 is for continuous data, whose density is N(x_0; x_1 / alpha, sigma^2 / alpha^2): its mean over eps.
    """
    if num_values:
        return -mean_per_sample(decoder.log_posterior(x_0, eps, log_snr, num_values))
    log_snr = jnp.asarray(log_snr, jnp.float32)
    return jnp.broadcast_to((1 + jnp.log(2 * jnp.pi) - log_snr) / 2, x_0.shape[:1])


def least_noisy(num_values: int) -> float:
    """The log-SNR at which the data of so many values should begin, so that the reconstruction costs almost nothing.

    There 6 sigma / alpha fit between two neighbouring values, 2 / (num_values - 1): 13.28 for 8-bit images (VDM starts
    at 13.3), 7.74 for 17 values. Continuous data (0) begin at sigma / alpha = 1e-3, log-SNR 13.8.
    """
    decoder.check_num_values(num_values)
    return 2 * math.log(3 * (num_values - 1) if num_values else 1000)
