"""CIFAR-10: 60,000 colour photographs of 32x32 pixels in ten classes (A. Krizhevsky, 2009)."""

import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from diffusion.data.dataset import Dataset
from diffusion.data.download import RemoteFile
from diffusion.data.recipe import Examples, Recipe, load

BATCHES = {
    "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    "test": ("test_batch.bin",),
}


def cifar10(split: str = "train", data_dir: str | None = None, archive: str | None = None) -> Dataset:
    """Returns CIFAR-10 as 32x32x3 images, 256 values, ten classes: 50,000 for "train", 10,000 for
    "test".

    The first time, the archive is downloaded (170 MB, checksum enforced) and prepared into the
    official TFDS layout (`<data_dir>/cifar10/3.0.2`, about 20 s); later it is read from there.

    Args:
        split: "train" or "test".
        data_dir: folder of prepared sets; None means $TFDS_DATA_DIR, else ~/tensorflow_datasets.
        archive: `cifar-10-binary.tar.gz`, or a folder that holds it; None downloads it.

    Raises:
        ValueError: unknown split, or an archive with another checksum.
        FileNotFoundError: no archive and no network; the message says what to put where.
    """
    return load(CIFAR10, split, data_dir, archive)


def _examples(paths: Mapping[str, Path], split: str) -> Examples:
    """Yields (image, label); a row is one label byte, then the red, green and blue plane."""
    (path,) = paths.values()
    with tarfile.open(path) as archive:
        for batch in BATCHES[split]:
            member = archive.extractfile(f"cifar-10-batches-bin/{batch}")
            if member is None:
                raise ValueError(f"{batch} in {path} is no ordinary file.")
            for row in np.frombuffer(member.read(), np.uint8).reshape(-1, 1 + 3 * 32 * 32):
                yield row[1:].reshape(3, 32, 32).transpose(1, 2, 0), int(row[0])


CIFAR10 = Recipe(
    name="cifar10",
    version="3.0.2",
    shape=(32, 32, 3),
    class_names=(
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
    files=(
        RemoteFile(
            url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            num_bytes=170052171,
        ),
    ),
    examples=_examples,
    has_ids=True,
)
