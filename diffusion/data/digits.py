"""Handwritten digits that come with scikit-learn: nothing to download.

1,797 real scans of 8x8 pixels with 17 grey levels, the test part of UCI's "Optical Recognition of
Handwritten Digits" (E. Alpaydin and C. Kaynak, 1998). scikit-learn knows no split, so this file
fixes one.
"""

import numpy as np
from jaxtyping import Bool, Integer

from diffusion.data.dataset import Dataset, from_arrays, require_split

NUM_VALUES = 17


def digits(split: str = "train") -> Dataset:
    """Returns the digits as 8x8x1 images with intensities 0..16 and labels 0..9: 1,500 for "train",
    297 for "test".

    The split is stratified and needs no random numbers: of each class the 5th, 11th, 17th, ...
    image (in scikit-learn's order) is a test image, 28 to 30 of each digit.

    Raises:
        ValueError: `split` is neither "train" nor "test".
    """
    require_split(split, ("train", "test"), "digits")
    from sklearn.datasets import load_digits

    scans = load_digits()
    images = scans.images.astype(np.uint8)[..., None]
    labels = scans.target.astype(np.int32)
    chosen = _is_test(labels) if split == "test" else ~_is_test(labels)
    return from_arrays(
        images[chosen],
        labels[chosen],
        num_values=NUM_VALUES,
        class_names=tuple(str(digit) for digit in range(10)),
    )


def _is_test(labels: Integer[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Returns True for the images that belong to the test split."""
    is_test = np.zeros(len(labels), bool)
    for digit in range(10):
        is_test[np.flatnonzero(labels == digit)[4::6]] = True
    return is_test
