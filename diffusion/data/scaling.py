"""The one place where pixel ranges change.

Networks see images in [-1, 1]; files and screens hold small integers. Both maps below send the two
ends exactly onto the two ends, and for 8-bit images they are exact inverses of each other.
"""

import numpy as np
from jaxtyping import Float, Float32, UInt8


def to_unit_range(image: UInt8[np.ndarray, "*shape"], num_values: int = 256) -> Float32[np.ndarray, "*shape"]:
    """Returns `image` as float32 in [-1, 1]: 2 image / (num_values - 1) - 1.

    Args:
        image: stored intensities 0..num_values-1, any shape.
        num_values: how many intensities the data set knows: 256 for 8-bit images, 17 for scikit-learn's digits.

    Raises:
        ValueError: an intensity is num_values or above, or num_values is not in 2..256.
    """
    check_values(image, num_values)
    half = np.float32((num_values - 1) / 2)  # a multiple of 1/2, so exact, and (num_values - 1) / half is exactly 2
    return image.astype(np.float32) / half - np.float32(1)


def check_values(image: UInt8[np.ndarray, "*shape"], num_values: int) -> None:
    """Returns None if the intensities are below `num_values`.

    Raises:
        ValueError: one is not, or num_values is not in 2..256.
    """
    if not 2 <= num_values <= 256:
        raise ValueError(f"num_values is {num_values}; uint8 images have between 2 and 256 values.")
    if num_values < 256 and image.size and image.max() >= num_values:
        raise ValueError(
            f"an intensity of {image.max()} was found where num_values={num_values} allows "
            f"0..{num_values - 1}. Write num_values=256 for ordinary 8-bit images."
        )


def to_uint8(x: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Returns `x` as 8-bit intensities 0..255: (x + 1) 127.5, clipped and rounded to the nearest.

    Args:
        x: images with [-1, 1] for black..white; what lies outside is clipped. Any shape.

    Raises:
        ValueError: `x` holds NaN or infinity, which no picture can show.
    """
    finite = np.isfinite(x)
    if not finite.all():
        raise ValueError(
            f"{finite.size - np.count_nonzero(finite)} of {finite.size} values are NaN or "
            "infinite; images must be finite, in [-1, 1]. The run that made them has diverged."
        )
    return np.rint((np.clip(x, -1, 1) + 1) * 127.5).astype(np.uint8)
