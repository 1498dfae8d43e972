"""Geometric augmentation that does not leak into the samples, because the network is told what was done.

Karras et al. 2022 (arXiv:2206.00364), appendix F.2 "Augmentation regularization", table 6. Each training image is
moved by random transforms, whose parameters the network reads as a vector of nine numbers, the label. The label of an
untouched image is zero, and so is the label with which images are generated. In the order of application:

    transform               drawn                                   with probability    label
    mirror left to right    -                                       1/2                 1
    mirror top to bottom    -                                       p / 2               1
    scale                   2^(0.2 w), w ~ N(0, 1)                  p                   w
    rotate                  a uniform in (-pi, pi)                  p                   cos a - 1, sin a
    stretch                 2^(0.2 w) along the axis r,             p                   w cos r, w sin r
                            2^(-0.2 w) across, w ~ N(0, 1),
                            r = 0 or uniform in (-pi, pi)
    shift                   0.125 (w_0 width, w_1 height),          p                   w_0, w_1
                            w_0, w_1 ~ N(0, 1)

Positive angles turn counter-clockwise as seen, positive shifts go right and down, all about the image's centre.
As published, (w, r) and (-w, r + pi) have the same label though the one stretches where the other squeezes.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from diffusion.keys import stream

LABEL_WIDTH = 9
"""How many numbers tell the network what was done to an image."""

SCALE_STD, SHIFT_STD = 0.2, 0.125
"""Standard deviations of log2 of the scales, and of the shifts as fractions of the sides."""


class Moves(NamedTuple):
    """What is done to an image besides mirroring, for one of them or one row each; all zeros leave it where it is."""

    scale: Any
    angle: Any
    stretch: Any
    axis: Any
    right: Any
    down: Any


def geometric(
    key: PRNGKeyArray, x: Float[Array | np.ndarray, "b h w c"], p: float
) -> tuple[Float[Array, "b h w c"], Float[Array, "b 9"]]:
    """(augmented images, labels): the transforms and the label of this file's first lines.

    key:    draws everything, for the whole batch, by purpose.
    x:      images in [-1, 1]; any height, width and channels. The result has their dtype and lies in [-1, 1] too.
    p:      in [0, 1]; published: 0.12 for CIFAR-10, 0.15 for FFHQ and AFHQv2 at 64x64.

    An image that is at most mirrored comes out exact. Any other is resampled once: upsampled by 2 (Lanczos-3), read
    bilinearly where the inverse of all its transforms together points, mirrored at the edges, scaled down again with
    antialiasing, and clipped. Up and down alone blur a little: measured, they change a Gaussian blob of sigma = 2
    pixels and height 2 by 0.008 at most, digits by 0.08 rms, and independent uniform pixels by 0.17 rms of their 0.58.
    (The published code has a wavelet's filter instead of Lanczos', and does not clip.)
    """
    x = jnp.asarray(x)
    mirror_x, mirror_y, moves = _draw(key, p, x.shape[0])
    x = jnp.where(mirror_x[:, None, None, None], x[:, :, ::-1], x)
    x = jnp.where(mirror_y[:, None, None, None], x[:, ::-1], x)
    label = jnp.stack([mirror_x, mirror_y, *_told(moves)], axis=1, dtype=jnp.float32)
    moved = (label[:, 2:] != 0).any(1)[:, None, None, None]
    resampled = jax.vmap(_resample)(x.astype(jnp.float32), moves)
    return jnp.where(moved, resampled.astype(x.dtype), x), label


def _draw(key: PRNGKeyArray, p: float, batch: int) -> tuple[Bool[Array, " b"], Bool[Array, " b"], Moves]:
    """Whether each image is mirrored left to right, and top to bottom, and its other moves."""

    def coin(purpose: str, probability: float) -> Any:
        return jax.random.bernoulli(stream(key, purpose), probability, (batch,))

    def normal(purpose: str, applied: Any) -> Any:
        return jnp.where(applied, jax.random.normal(stream(key, purpose), (batch,)), 0)

    def angle(purpose: str, applied: Any) -> Any:
        turn = jax.random.uniform(stream(key, purpose), (batch,), minval=-math.pi, maxval=math.pi)
        return jnp.where(applied, turn, 0)

    shifted = coin("shift or not", p)
    moves = Moves(
        scale=normal("scale", coin("scale or not", p)),
        angle=angle("angle", coin("rotate or not", p)),
        stretch=normal("stretch", coin("stretch or not", p)),
        axis=angle("axis", coin("turn the axis or not", 0.5)),
        right=normal("shift right", shifted),
        down=normal("shift down", shifted),
    )
    return coin("mirror x", 0.5), coin("mirror y or not", p) & coin("mirror y", 0.5), moves


def _told(moves: Moves) -> tuple[Any, ...]:
    """The label's seven numbers for the moves."""
    rotation = jnp.cos(moves.angle) - 1, jnp.sin(moves.angle)
    axis = moves.stretch * jnp.cos(moves.axis), moves.stretch * jnp.sin(moves.axis)
    return moves.scale, *rotation, *axis, moves.right, moves.down


def _resample(image: Float[Array, "h w c"], moves: Moves) -> Float[Array, "h w c"]:
    """One image, moved."""
    h, w, c = image.shape
    fine = jax.image.resize(image, (2 * h, 2 * w, c), "lanczos3")
    rows, columns = (jnp.arange(2 * n, dtype=jnp.float32) - (n - 0.5) for n in (h, w))
    x, y = _origin(columns[None, :] / 2, rows[:, None] / 2, moves, h, w)
    places = [2 * y + (h - 0.5), 2 * x + (w - 0.5)]

    def read(channel: Any) -> Any:
        return jax.scipy.ndimage.map_coordinates(channel, places, order=1, mode="reflect")

    fine = jax.vmap(read, in_axes=-1, out_axes=-1)(fine)
    return jnp.clip(jax.image.resize(fine, image.shape, "lanczos3", antialias=True), -1, 1)


def _origin(x: Any, y: Any, moves: Moves, h: int, w: int) -> tuple[Any, Any]:
    """Where the content of the places (x, y) comes from: the moves undone, last one first.

    x to the right and y down, in pixels from the image's centre.
    """
    x, y = x - SHIFT_STD * w * moves.right, y - SHIFT_STD * h * moves.down
    x, y = _turn(x, y, -moves.axis)
    x, y = x * 2 ** (-SCALE_STD * moves.stretch), y * 2 ** (SCALE_STD * moves.stretch)
    x, y = _turn(x, y, moves.axis - moves.angle)
    shrink = 2 ** (-SCALE_STD * moves.scale)
    return x * shrink, y * shrink


def _turn(x: Any, y: Any, angle: Any) -> tuple[Any, Any]:
    """Turned counter-clockwise as seen, y pointing down."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return cos * x + sin * y, cos * y - sin * x
