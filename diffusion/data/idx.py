"""The file format of MNIST and of the data sets that took its place, and the recipe they share.

An idx file is: two zero bytes, a type byte (8 = uint8), the number of dimensions, each dimension as
a big-endian int32, then the values. These sets come as four such files, gzipped.
"""

import gzip
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from diffusion.data.download import RemoteFile
from diffusion.data.recipe import Examples, Recipe

PREFIXES = {"train": "train", "test": "t10k"}


def mnist_like(
    name: str,
    url: str,
    checksums: Mapping[str, tuple[str, int]],
    class_names: tuple[str, ...],
) -> Recipe:
    """Returns the recipe of a 28x28x1 data set that comes as MNIST's four files.

    Args:
        name: its name in TFDS, where MNIST and its like all have version 3.0.1.
        url: address of the folder that holds the files, with "/" at the end.
        checksums: SHA-256 and number of bytes of each file, by file name.
        class_names: the name of label 0, 1, ...
    """
    return Recipe(
        name=name,
        version="3.0.1",
        shape=(28, 28, 1),
        class_names=class_names,
        files=tuple(RemoteFile(url + file, *checksum) for file, checksum in checksums.items()),
        examples=_examples,
    )


def read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """Returns the array in a gzipped idx file of uint8 values.

    Raises:
        ValueError: the file starts otherwise.
    """
    with gzip.open(path) as file:
        content = file.read()
    if content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} starts with {content[:3]!r}; expected an idx file of uint8 values.")
    num_dims = content[3]
    shape = np.frombuffer(content, ">i4", count=num_dims, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_dims).reshape(shape)


def _examples(paths: Mapping[str, Path], split: str) -> Examples:
    """Yields (image, label) in the order of the files."""
    images = read_idx(paths[f"{PREFIXES[split]}-images-idx3-ubyte.gz"])
    labels = read_idx(paths[f"{PREFIXES[split]}-labels-idx1-ubyte.gz"])
    for image, label in zip(images, labels, strict=True):
        yield image[..., None], int(label)
