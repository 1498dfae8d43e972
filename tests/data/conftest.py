"""Tiny data sets of the true layouts, written by the tests themselves."""

import gzip
import hashlib
import io
import tarfile
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from diffusion.data import cifar10, fashion_mnist, mnist
from diffusion.data.dataset import from_arrays
from diffusion.data.download import RemoteFile
from diffusion.data.recipe import Recipe

NUM_PER_FILE = 3  # images in each CIFAR batch file
NUM_MNIST = {"train": 7, "test": 4}


@dataclass(frozen=True)
class Published:
    """A miniature of a published data set.

    `recipe` is the real one but for the checksums, which are the miniature's; `archive` is what a
    user would pass; images and labels are by split, in the published order.
    """

    recipe: Recipe
    archive: Path
    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]


def _with_checksums_of(recipe: Recipe, paths: list[Path]) -> Recipe:
    by_name = {path.name: path.read_bytes() for path in paths}
    files = [
        RemoteFile(file.url, hashlib.sha256(by_name[file.name]).hexdigest(), len(by_name[file.name]))
        for file in recipe.files
    ]
    return replace(recipe, files=tuple(files))


def _cifar10(folder: Path) -> Published:
    rng = np.random.default_rng(0)
    batches = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    images: dict[str, list] = {"train": [], "test": []}
    labels: dict[str, list] = {"train": [], "test": []}
    path = folder / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        members = {"batches.meta.txt": "\n".join(cifar10.CIFAR10.class_names).encode() + b"\n\n"}
        for batch in batches:
            split = "test" if batch.startswith("test") else "train"
            rows = b""
            for _ in range(NUM_PER_FILE):
                image = rng.integers(0, 256, (32, 32, 3), np.uint8)
                label = int(rng.integers(10))
                planes = [image[:, :, channel].tobytes() for channel in range(3)]
                rows += bytes([label]) + b"".join(planes)
                images[split].append(image)
                labels[split].append(label)
            members[batch] = rows
        for name, content in members.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return Published(
        _with_checksums_of(cifar10.CIFAR10, [path]),
        path,
        {split: np.stack(images[split]) for split in images},
        {split: np.array(labels[split]) for split in labels},
    )


def _mnist_like(folder: Path, recipe: Recipe, seed: int) -> Published:
    rng = np.random.default_rng(seed)
    images, labels, paths = {}, {}, []
    for split, prefix in (("train", "train"), ("test", "t10k")):
        num = NUM_MNIST[split]
        images[split] = rng.integers(0, 256, (num, 28, 28, 1), np.uint8)
        labels[split] = rng.integers(0, 10, num).astype(np.uint8)
        for kind, magic, dims, values in (
            ("images-idx3", 2051, (num, 28, 28), images[split]),
            ("labels-idx1", 2049, (num,), labels[split]),
        ):
            header = b"".join(number.to_bytes(4, "big") for number in (magic, *dims))
            paths.append(folder / f"{prefix}-{kind}-ubyte.gz")
            paths[-1].write_bytes(gzip.compress(header + values.tobytes()))
    return Published(_with_checksums_of(recipe, paths), folder, images, labels)


@pytest.fixture(scope="session", autouse=True)
def _own_temporary_folder(tmp_path_factory):
    """TFDS leaves an empty folder behind for each builder; let pytest clear them away."""
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("temporary"))
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture(scope="session", params=["cifar10", "mnist", "fashion_mnist"])
def published(request, tmp_path_factory) -> Published:
    folder = tmp_path_factory.mktemp(f"published_{request.param}")
    if request.param == "cifar10":
        return _cifar10(folder)
    if request.param == "mnist":
        return _mnist_like(folder, mnist.MNIST, seed=1)
    return _mnist_like(folder, fashion_mnist.FASHION_MNIST, seed=2)


@pytest.fixture
def numbered():
    """Returns a function: n -> a labelled set whose image i holds i in column 0 and 0 elsewhere.

    So the pixels tell which image one sees and whether it is mirrored. Label i is i too.
    """

    def make(n: int):
        images = np.zeros((n, 2, 3, 1), np.uint8)
        images[:, :, 0, 0] = np.arange(n)[:, None]
        return from_arrays(images, np.arange(n), class_names=[str(i) for i in range(n)])

    return make


@pytest.fixture
def write_image():
    """Returns a function that writes an array [h, w], [h, w, 3] or [h, w, 4] as a picture."""

    def write(path: Path, pixels: np.ndarray, **options) -> Path:
        from PIL import Image

        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, **options)
        return path

    return write
