"""MNIST: 70,000 handwritten digits of 28x28 pixels (Y. LeCun, C. Cortes, C. Burges, 1998)."""

from diffusion.data.dataset import Dataset
from diffusion.data.idx import mnist_like
from diffusion.data.recipe import load

MNIST = mnist_like(
    name="mnist",
    url="https://storage.googleapis.com/cvdf-datasets/mnist/",
    checksums={
        "train-images-idx3-ubyte.gz": (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            9912422,
        ),
        "train-labels-idx1-ubyte.gz": (
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            28881,
        ),
        "t10k-images-idx3-ubyte.gz": (
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            1648877,
        ),
        "t10k-labels-idx1-ubyte.gz": (
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            4542,
        ),
    },
    class_names=tuple(str(digit) for digit in range(10)),
)


def mnist(split: str = "train", data_dir: str | None = None, archive: str | None = None) -> Dataset:
    """Returns MNIST as 28x28x1 images, 256 values, ten classes: 60,000 for "train", 10,000 for
    "test".

    The first time, the four files are downloaded (12 MB, checksums enforced) and prepared into the
    official TFDS layout (`<data_dir>/mnist/3.0.1`); later it is read from there.

    Args:
        split: "train" or "test".
        data_dir: folder of prepared sets; None means $TFDS_DATA_DIR, else ~/tensorflow_datasets.
        archive: a folder that holds the four `.gz` files; None downloads them.

    Raises:
        ValueError: unknown split, or a file with another checksum.
        FileNotFoundError: a file is missing and there is no network; the message says what to put where.
    """
    return load(MNIST, split, data_dir, archive)
