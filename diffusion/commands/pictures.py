"""Image files that a user gives to a command."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from diffusion.data.scaling import to_unit_range


def read_image(file: str | Path, sizes: dict[tuple[int, int], str], channels: int) -> Float[np.ndarray, "h w c"]:
    """The image in [-1, 1], upright, without transparency, 0..255 of any 8-bit format being -1..1.

    sizes: the (height, width) that it may have, and what each is, for the error. channels: 1 or 3; a grey image
    has three equal ones, and a file that holds three equal ones is grey.
    ValueError: no such file, no image, another size, or colours where the model draws greys.
    """
    pixels = _pixels(file)
    if pixels.shape[:2] not in sizes:
        wanted = " or ".join(f"{w} x {h} ({what})" for (h, w), what in sizes.items())
        had = "{1} x {0}".format(*pixels.shape)
        raise ValueError(f"{file} is {had} pixels (width x height), expected {wanted}. Resize or crop it.")
    if channels == 1 and not (pixels == pixels[..., :1]).all():
        raise ValueError(f"{file} is in colour, but the run draws grey images; convert it to greyscale.")
    return to_unit_range(pixels[..., :channels])


def read_mask(file: str | Path, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """True where the mask is black, which is kept; white is painted anew, as in most programs.

    ValueError: no such file, no image, another size, or other values than black and white.
    """
    pixels = _pixels(file, opaque=True)
    if pixels.shape[:2] != size:
        had, wanted = ("{1} x {0}".format(*shape) for shape in (pixels.shape, size))
        raise ValueError(f"the mask {file} is {had} pixels (width x height), expected {wanted}, the images' size.")
    if (pixels != pixels[..., :1]).any():
        raise ValueError(f"the mask {file} has colours, expected black (is kept) and white (is painted anew).")
    if other := sorted(set(np.unique(pixels).tolist()) - {0, 255}):
        raise ValueError(
            f"the mask {file} has values such as {other[0]}, expected only 0 (black, is kept) and 255 (white, is "
            "painted anew). Save it without soft edges, and not as JPEG."
        )
    return (pixels == 0).all(-1)


def _pixels(file: str | Path, opaque: bool = False) -> UInt8[np.ndarray, "h w 3"]:
    from PIL import Image, ImageOps

    try:
        with Image.open(Path(file).expanduser()) as stored:
            if stored.mode.startswith(("I", "F")):
                raise ValueError(f"{file} has more than 8 bits a value (mode {stored.mode}); save it with 8.")
            if opaque and stored.has_transparency_data and np.asarray(stored.convert("RGBA"))[..., 3].min() < 255:
                raise ValueError(f"{file} is transparent in places, expected black and white: flatten it.")
            upright: Any = ImageOps.exif_transpose(stored)
            return np.asarray(upright.convert("RGB"))
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {file} (that is {Path(file).absolute()}).") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} is not an image that can be read ({error}).") from error
