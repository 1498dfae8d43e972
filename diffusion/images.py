"""Pictures of samples: grids as arrays, as PNG files and as something a notebook shows."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from diffusion import points
from diffusion.data.scaling import to_uint8
from diffusion.types import Array


def grid(
    images: Float[Array, "n h w c"], columns: int | None = None, scale: int | None = None
) -> UInt8[np.ndarray, "height width c"]:
    """The images, in [-1, 1], side by side in rows, as bytes.

    columns: images per row, by default as near to a square as possible. scale: how many pixels wide each
    pixel is drawn, by default so that an image is at least 32 pixels high. One black pixel lies between.
    """
    images = to_uint8(np.asarray(images))
    n, h, _, c = images.shape
    columns = columns or int(np.ceil(np.sqrt(n)))
    scale = scale or max(1, -(-32 // h))
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    images = np.pad(images, ((0, -n % columns), (0, 1), (0, 1), (0, 0)))
    rows = images.reshape(-1, columns, *images.shape[1:]).swapaxes(1, 2)
    return rows.reshape(rows.shape[0] * rows.shape[1], -1, c)[:-1, :-1]


def picture(samples: Float[Array, "n *shape"], columns: int | None = None) -> UInt8[np.ndarray, "height width c"]:
    """The grid of images [n, h, w, c], or a scatter plot of points [n, 2]."""
    return points.scatter(samples) if np.ndim(samples) == 2 else grid(samples, columns)


def show(images: Float[Array, "n *shape"], columns: int | None = None) -> Any:
    """A PIL image of the samples, which a notebook displays when it is the last value of a cell."""
    from PIL import Image

    pixels = picture(images, columns)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def show_path(path: Float[Array, "states n h w c"], columns: int = 10) -> Any:
    """A PIL image of the way from noise to data: one row per sample, time from left to right.

    path: the second value of sampling.generate(..., save_every=k). At most `columns` states are shown,
    evenly spread, the first and the last among them. Values beyond [-1, 1] are cut off.
    """
    path = np.asarray(path)
    shown = path[np.unique(np.linspace(0, len(path) - 1, columns).round().astype(int))]
    return show(shown.swapaxes(0, 1).reshape(-1, *path.shape[2:]), columns=len(shown))


def save_png(file: Path, images: Float[Array, "n *shape"], columns: int | None = None) -> None:
    """Writes the picture of the samples as a PNG file; its folder must exist."""
    show(images, columns).save(file)
