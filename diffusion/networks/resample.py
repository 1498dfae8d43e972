"""Halving and doubling of images with a filter (Zhang 2019, arXiv:1904.11486; NCSN++, Song et al. 2020).

A filter is its taps along one axis, an even number: (1, 1) averages and repeats pixels, (1, 3, 3, 1) is StyleGAN2's.
Outside the image there are zeros. All three keep the centre of the image where it is.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Taps = tuple[float, ...]


def down(x: Float[Array, "b h w c"], taps: Taps) -> Float[Array, "b h//2 w//2 c"]:
    """Filtered, and every second pixel kept; a constant stays what it is, away from the edge."""
    edge = len(taps) // 2 - 1
    return _filtered(x, _normalised(taps), (edge, edge), stride=2)


def up(x: Float[Array, "b h w c"], taps: Taps) -> Float[Array, "b 2*h 2*w c"]:
    """Zeros put between the pixels, and filtered; a constant stays what it is, away from the edge."""
    for axis in (1, 2):
        x = jnp.stack([x, jnp.zeros_like(x)], axis + 1).reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])
    return _filtered(x, 2 * _normalised(taps), (len(taps) // 2, len(taps) // 2 - 1))


def blur(x: Float[Array, "b h w c"], taps: Taps) -> Float[Array, "b h+1 w+1 c"]:
    """Filtered, between the pixels and at both edges: what a 3x3 convolution of stride 2 without padding halves."""
    return _filtered(x, _normalised(taps), (len(taps) // 2, len(taps) // 2))


def check_taps(taps: Taps) -> Taps:
    """The taps; ValueError where they are no filter that fits in the middle between two pixels."""
    if len(taps) < 2 or len(taps) % 2 or sum(taps) <= 0 or tuple(taps) != tuple(reversed(taps)):
        raise ValueError(
            f"got resample_filter={tuple(taps)}, expected an even number of symmetric taps, such as (1, 1) "
            "or (1, 3, 3, 1)."
        )
    return tuple(taps)


def _normalised(taps: Taps) -> np.ndarray:
    return np.asarray(taps, np.float32) / np.float32(sum(taps))


def _filtered(x: Array, taps: np.ndarray, edges: tuple[int, int], stride: int = 1) -> Array:
    """Sums of shifted images, which every backend does at the speed of its memory, for h and for w."""
    for axis in (1, 2):
        padding = [(0, 0)] * 4
        padding[axis] = edges
        padded = jnp.pad(x, padding)
        last = padded.shape[axis] - len(taps) + 1
        shifted = [jax.lax.slice_in_dim(padded, i, i + last, stride, axis) for i in range(len(taps))]
        x = functools.reduce(jnp.add, (float(tap) * image for tap, image in zip(taps, shifted, strict=True)))
    return x
