"""Transforms of a denoiser, Denoiser -> Denoiser: they compose, and every sampler takes the result.

Each returns a consistent pair again: when x_0 is changed, eps follows from x_t = alpha x_0 + sigma eps.
"""

from collections.abc import Callable

import jax.numpy as jnp

from diffusion.gaussian import eps_from_x_0
from diffusion.types import Array, Denoiser, NoiseLevel, Prediction, expand

Transform = Callable[[Denoiser], Denoiser]


def none() -> Transform:
    """The denoiser as it is."""
    return lambda denoise: denoise


def clip(low: float = -1.0, high: float = 1.0) -> Transform:
    """Clips the estimate of x_0 to the data's range, as DDPM's sampler does at every step."""
    if not low < high:
        raise ValueError(f"got low={low}, high={high}; expected low < high.")
    return _on_x_0(lambda x_0: jnp.clip(x_0, low, high))


def dynamic(percentile: float = 0.995) -> Transform:
    """Dynamic thresholding of x_0 (Saharia et al. 2022, arXiv:2205.11487, section 2.3).

    s = the given quantile of |x_0| over each sample, at least 1; x_0 is clipped to [-s, s] and divided by s.
    """
    if not 0 < percentile <= 1:
        raise ValueError(f"got percentile={percentile}, expected a share in (0, 1], such as 0.995.")

    def threshold(x_0: Array) -> Array:
        s = jnp.quantile(jnp.abs(x_0).reshape(x_0.shape[0], -1), percentile, axis=1)
        s = expand(jnp.maximum(s, 1.0), x_0)
        return jnp.clip(x_0, -s, s) / s

    return _on_x_0(threshold)


def _on_x_0(change: Callable[[Array], Array]) -> Transform:
    def transform(denoise: Denoiser) -> Denoiser:
        def changed(x_t: Array, level: NoiseLevel) -> Prediction:
            prediction = denoise(x_t, level)
            x_0 = change(prediction.x_0)
            return prediction._replace(x_0=x_0, eps=eps_from_x_0(x_t, x_0, level))

        return changed

    return transform
