"""The few types that every other module speaks: noise levels, steps, predictions.

A Gaussian diffusion is x_t = alpha x_0 + sigma eps with eps ~ N(0, I). All that a loss, a sampler or a
likelihood needs to know of the moment t is the pair (alpha, sigma), so that pair travels as a
`NoiseLevel`, together with log_snr = 2 log(alpha / sigma) and the schedule's own token t. Schedules make
levels; everybody else only reads them. Nobody but the schedule does arithmetic on t, which may be the
index of a chain (1..T, 0 = clean) or a continuous time, and grows with the noise in either case.
"""

import math
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray
Params = Any
"""A network's parameters: a tree of arrays."""
BITS = 1 / math.log(2)
"""Bits in a nat."""
Cond = Mapping[str, Array]
"""What a network is conditioned on besides the noise level, one row a sample: {"label": [b], ...}."""


class NoiseLevel(NamedTuple):
    """One noise level, or one per sample: every field has the shape [] or [batch].

    t:        the schedule's token, growing with noise.
    alpha:    marginal scale of the data, sqrt(alpha_bar) in a DDPM chain.
    sigma:    marginal standard deviation of the noise, sqrt(1 - alpha_bar) in a DDPM chain.
    log_snr:  2 log(alpha / sigma); +inf at clean data, -inf at pure noise.
    """

    t: Any
    alpha: Any
    sigma: Any
    log_snr: Any


class Step(NamedTuple):
    """One move of a sampler, from the level `now` to the less noisy level `to`.

    h = to.log_snr - now.log_snr >= 0 is subtracted in float64 and rounded once; recomputing it from
    two float32 fields would lose three digits on a 1000-step chain. A whole sampling grid is one `Step`
    whose fields have a leading axis.

    aux: a third level, which some samplers evaluate besides `now` (`Sampler.aux`, `grids.prepare`).
    back: the noise that is added again after the move, as a step back.now -> back.to = to of its own, with h = 0 where
        there is none (`grids.resampled`).
    """

    now: NoiseLevel
    to: NoiseLevel
    h: Any
    aux: NoiseLevel | None = None
    back: "Step | None" = None


class Prediction(NamedTuple):
    """What a denoiser says of x_t: estimates of the clean data and of the noise, consistent with each other.

    x_0, eps:  the shape of x_t, with x_t = alpha x_0 + sigma eps (but for CFG++, see `guidance.classifier_free`).
    var_frac:  where the variance is learned as a range, the place of a step's log-variance between the small (0) and
               the large (1) one, of the shape of x_t (`gaussian.reverse_log_variance`).
    push:      the gradient that guides, of the shape of x_t, where x_0 and eps have been moved by it
               (`guidance.energy`): what ancestral sampling shifts its mean by.
    log_var_x_0:  where it is learned directly, the logarithm of the variance of x_0 given x_t, of the shape of x_t.
    """

    x_0: Any
    eps: Any
    var_frac: Any = None
    push: Any = None
    log_var_x_0: Any = None


Denoiser = Callable[[Any, NoiseLevel], Prediction]
"""(x_t, level) -> Prediction: all that a sampler sees of a model. Guidance maps Denoiser -> Denoiser."""


class SelfConditioned(NamedTuple):
    """A denoiser that is fed its own last estimate of x_0 (Chen et al. 2022, arXiv:2208.04202).

    bind(x_0_hat) -> Denoiser. The sampling loop carries the estimate, so every sampler works unchanged.
    """

    bind: Callable[[Any], Denoiser]


AnyDenoiser = Denoiser | SelfConditioned


def memoryless(denoise: AnyDenoiser, x: Any) -> Denoiser:
    """The denoiser of samples like x, of x_t alone: a self-conditioned one is told of no estimate (zeros)."""
    return denoise.bind(jnp.zeros_like(x)) if isinstance(denoise, SelfConditioned) else denoise


def namespace(*arrays: Any) -> ModuleType:
    """jax.numpy if any of the values is a JAX array, else numpy: JAX in, float32 out; numpy in, float64 out."""
    return jnp if any(isinstance(a, jax.Array) for a in arrays) else np


def expand(per_sample: Any, x: Any) -> Any:
    """A value of shape [] or [batch], reshaped to multiply x of shape [batch, ...] sample by sample."""
    missing = np.ndim(x) - np.ndim(per_sample)
    return per_sample.reshape(per_sample.shape + (1,) * missing) if np.ndim(per_sample) else per_sample


def mean_per_sample(x: Any) -> Any:
    """The mean over all axes but the first, [batch]."""
    return x.reshape(len(x), -1).mean(1)


def check_positive(name: str, value: float) -> float:
    """The value; ValueError where it is not above zero."""
    if not value > 0:
        raise ValueError(f"got {name}={value}, expected a positive number.")
    return value


def float32(tree: Any) -> Any:
    """The tree with its floating leaves as float32 JAX arrays and its integers as int32: ready for the device."""

    def cast(leaf: Any) -> jax.Array:
        floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        return jnp.asarray(leaf, jnp.float32 if floating else jnp.int32)

    return jax.tree.map(cast, tree)
