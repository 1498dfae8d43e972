"""The last step of the reverse process: from x_1, which is real-valued, to data that knows only num_values values.

Images are stored as integers and scaled to [-1, 1]: the values lie delta = 2 / (num_values - 1) apart, 2/255 for
8-bit images. A density says nothing of such data, since a model that piles its mass onto the values reaches any
density it likes. A probability has no such loophole, and -log2 of it is what a file needs: so DDPM integrates the last
Gaussian over the bin around each value (Ho et al. 2020, arXiv:2006.11239, eq. 13),

    p(x_0 | x_1) = Phi(b) - Phi(a),   a, b = (x_0 -+ delta / 2 - mean) / scale,   scale = exp(log_variance / 2),

Phi being the standard normal's distribution function. The first bin is open towards -inf and the last towards +inf:
what the Gaussian puts outside the data's range counts for the nearest value, so that the probabilities sum to 1.

**In float32** the formula as it stands fails three times. Far in a tail both Phi are 0 or 1, and their difference
is 0. In a narrow bin, delta << scale, the difference cancels. And x_0 + delta / 2 is rounded to 6e-8, which is a lot
where the scale is 1e-4, so that neighbours would disagree about the edge that they share. What is done instead, with
c the bin's centre as seen from the mean, h half its width, both in units of the scale, and R(z) = Q(z) / phi(z) the
Mills ratio of the upper tail Q = 1 - Phi to the density phi:

    narrow    h <= 1 and |c| h <= 1       Gauss-Legendre quadrature of phi over the bin: a sum of positive numbers
    tail      else, mean outside the bin  P = phi(lo) (R(lo) - exp(-2 |c| h) R(hi)),   lo, hi = |c| -+ h; here
                                          exp(-2 |c| h) < exp(-2), so nothing cancels, and no exponent is subtracted
    inside    else, mean in the bin       log P = log1p(-Q(-lo) - Q(hi)), exact also where P is nearly 1

An open bin has Q(hi) = 0. The edges come from the integer that x_0 stands for, the same for both neighbours.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from diffusion.types import Array, expand

_LOG_VARIANCE_LIMIT = 60.0
_QUADRATURE = np.transpose(np.polynomial.legendre.leggauss(6)).tolist()  # (node, weight): 8e-9 where a bin is narrow
_FAR = 3.0  # from here on the continued fraction of R takes over, whose first 14 terms leave 3e-8
_LOG_SQRT_2_PI = math.log(2 * math.pi) / 2


def log_prob(
    x_0: Float[Array, "*shape"], mean: Float[Array, "*shape"], log_variance: Any, num_values: int
) -> Float[jax.Array, "*shape"]:
    """log p(x_0 | x_1) in nats, element by element: of x_0's bin under N(mean, exp(log_variance)) (DDPM eq. 13).

    x_0:           data in [-1, 1]. With num_values > 0 it stands for the nearest of the values -1, -1 + delta, ..., 1.
    mean:          of the same shape, up to +-1e6.
    log_variance:  of shape [], or one that broadcasts to x_0's at the same rank. Counted as +-60 beyond that, where
                   float32 would overflow; the gradient is 0 there.
    num_values:    how many values the data knows, a property of the data set: 256 for 8-bit images. 0: the data is
                   continuous, and the result is the Gaussian's log-density.

    float32, within 1e-6 max(1, |log p|) of the exact value, with finite gradients throughout (tests/test_decoder.py).
    ValueError as of `check_num_values`.
    """
    check_num_values(num_values)
    x_0, mean = jnp.asarray(x_0, jnp.float32), jnp.asarray(mean, jnp.float32)
    log_variance = jnp.clip(jnp.asarray(log_variance, jnp.float32), -_LOG_VARIANCE_LIMIT, _LOG_VARIANCE_LIMIT)
    precision = jnp.exp(-log_variance / 2)  # 1 / scale
    if num_values == 0:
        return -0.5 * ((x_0 - mean) * precision) ** 2 - 0.5 * log_variance - _LOG_SQRT_2_PI
    return _log_mass(x_0, mean, precision, num_values)


def log_posterior(
    x_0: Float[Array, "*shape"], eps: Float[Array, "*shape"], log_snr: Any, num_values: int
) -> Float[jax.Array, "*shape"]:
    """log P(x_0 | x_t) in nats, element by element, with x_t = alpha x_0 + sigma eps at a log-SNR, [] or [batch].

    P(v | x_t) is proportional to N(x_t; alpha v, sigma^2) over the num_values values v that a pixel can have; x_0
    stands for the nearest (Kingma et al. 2021, arXiv:2107.00630, section 3.3). With r = alpha / sigma,

        -log P = log sum_v exp(-r^2 (x_0 - v)^2 / 2 - r (x_0 - v) eps).

    The sum is a scan: num_values times the batch is too much, and would be again in the backward pass.
    """
    check_num_values(num_values)
    last = num_values - 1
    apart = expand(jnp.exp(jnp.asarray(log_snr, jnp.float32) / 2), x_0) * (2 / last)  # of two neighbours, in sigmas
    own = jnp.clip(jnp.round((x_0 + 1) * (last / 2)), 0, last)

    def exponent(value: Any) -> Any:
        away = apart * (own - value)
        return -away * (away / 2 + eps)

    # the largest exponent is that of the value nearest to x_t / alpha; the sum is linear in its terms, so that its
    # gradient needs none of the partial sums, as it would those of logaddexp
    largest = jax.lax.stop_gradient(exponent(jnp.clip(jnp.round(own + eps / apart), 0, last)))

    @jax.checkpoint
    def add(total: Any, value: Any) -> tuple[Any, None]:
        return total + jnp.exp(exponent(value) - largest), None

    total, _ = jax.lax.scan(add, jnp.zeros_like(largest), jnp.arange(num_values, dtype=jnp.float32))
    return -largest - jnp.log(total)


def check_num_values(num_values: int) -> None:
    """ValueError for a number of values that no pixel has."""
    if num_values < 0 or num_values == 1:
        raise ValueError(f"got num_values={num_values}, expected at least 2 (256 for 8-bit images), or 0: continuous.")


def _log_mass(x_0: Any, mean: Any, precision: Any, num_values: int) -> Any:
    """log P of x_0's bin. Lengths are first counted in half bins, where the values are the integers -last..last."""
    last = num_values - 1
    value = 2 * jnp.clip(jnp.round((x_0 + 1) * (last / 2)), 0, last) - last
    # value - mean * last, without a rounding: coarse has so few digits that its product and its difference are exact
    grid = 2.0 ** (22 - num_values.bit_length())
    coarse = jax.lax.stop_gradient(jnp.round(mean * grid) / grid)

    def away(edge: Any) -> Any:
        return (edge - coarse * last) - (mean - coarse) * last

    centre = away(value)
    open_ = abs(value) == last
    side = jnp.where(open_, jnp.sign(value), jnp.where(centre < 0, -1.0, 1.0))  # the mean is on the other side
    h = precision * (1 / last) * jnp.ones_like(centre)
    lo, c, hi = side * away(value - side) * h, side * centre * h, side * away(value + side) * h

    narrow = ~open_ & (h <= 1) & (c * h <= 1)
    inside = ~narrow & (lo < 0)
    tail = ~narrow & ~inside
    # a branch is given harmless numbers where it is not chosen: `where` alone would let its NaN into the gradient
    of_narrow = _log_narrow(jnp.where(narrow, c, 0), jnp.where(narrow, h, 1))
    of_inside = _log_inside(jnp.where(inside, lo, -1), jnp.where(inside, hi, 1), open_)
    of_tail = _log_tail(jnp.where(tail, lo, 1), jnp.where(tail, c, 2), jnp.where(tail, h, 1), open_)
    return jnp.where(narrow, of_narrow, jnp.where(inside, of_inside, of_tail))


def _log_narrow(c: Any, h: Any) -> Any:
    """log(Q(c - h) - Q(c + h)): the quadrature of phi(c + h s) = phi(c) exp(-h s (c + h s / 2)) over s in [-1, 1]."""
    mean = sum(weight / 2 * jnp.exp(-h * s * (c + h * (s / 2))) for s, weight in _QUADRATURE)
    return -0.5 * c**2 - _LOG_SQRT_2_PI + jnp.log(2 * h) + jnp.log(mean)


def _log_inside(lo: Any, hi: Any, open_: Any) -> Any:
    """log(Q(lo) - Q(hi)) for lo <= 0 <= hi; log Q(lo) where open."""
    return jnp.log1p(-_upper(-lo) - jnp.where(open_, 0, _upper(hi)))


def _log_tail(lo: Any, c: Any, h: Any, open_: Any) -> Any:
    """log(Q(lo) - Q(c + h)) for 0 <= lo = c - h; log Q(lo) where open."""
    beyond = jnp.where(open_, 0, jnp.exp(-2 * c * h) * _mills(c + h))
    return -0.5 * lo**2 - _LOG_SQRT_2_PI + jnp.log(_mills(lo) - beyond)


def _upper(z: Any) -> Any:
    """Q(z), the standard normal's probability beyond z."""
    return 0.5 * jax.lax.erfc(z * math.sqrt(0.5))


def _mills(z: Any) -> Any:
    """Q(z) / phi(z) for z >= 0: 1 / (z + 1 / (z + 2 / (z + 3 / ...))), and by erfc near 0, where that is slow."""
    far = z > _FAR
    near, z = jnp.where(far, 0, z), jnp.where(far, z, _FAR)
    fraction = z
    for k in range(14, 0, -1):
        fraction = z + k / fraction
    return jnp.where(far, 1 / fraction, math.sqrt(2 * math.pi) * jnp.exp(near**2 / 2) * _upper(near))
