"""scikit-learn's handwritten digits, nothing to download.

1,797 real scans of 8x8 pixels with 17 grey levels, the test part of UCI's "Optical Recognition of
Handwritten Digits" (E. Alpaydin and C. Kaynak, 1998, licensed CC BY 4.0). `digits.npz` beside this
file holds exactly the arrays of `sklearn.datasets.load_digits()`, which a test compares, so that a
whole library need not be installed for 45 kB of data. scikit-learn knows no split; this file fixes one.
"""

from pathlib import Path

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
    with np.load(Path(__file__).with_name("digits.npz")) as scans:
        images, labels = scans["images"][..., None], scans["labels"].astype(np.int32)
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
