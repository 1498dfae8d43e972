"""Fashion-MNIST: 70,000 clothes of 28x28 pixels (H. Xiao, K. Rasul, R. Vollgraf, 2017)."""

from diffusion.data.dataset import Dataset
from diffusion.data.idx import mnist_like
from diffusion.data.recipe import load

FASHION_MNIST = mnist_like(
    name="fashion_mnist",
    url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    checksums={
        "train-images-idx3-ubyte.gz": (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            26421880,
        ),
        "train-labels-idx1-ubyte.gz": (
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            29515,
        ),
        "t10k-images-idx3-ubyte.gz": (
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            4422102,
        ),
        "t10k-labels-idx1-ubyte.gz": (
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            5148,
        ),
    },
    class_names=(
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
)


def fashion_mnist(split: str = "train", data_dir: str | None = None, archive: str | None = None) -> Dataset:
    """Returns Fashion-MNIST as 28x28x1 images, 256 values, ten classes: 60,000 for "train", 10,000
    for "test".

    The first time, the four files are downloaded (31 MB, checksums enforced) and prepared into the
    official TFDS layout (`<data_dir>/fashion_mnist/3.0.1`); later it is read from there.

    Args:
        split: "train" or "test".
        data_dir: folder of prepared sets; None means $TFDS_DATA_DIR, else ~/tensorflow_datasets.
        archive: a folder that holds the four `.gz` files; None downloads them.

    Raises:
        ValueError: unknown split, or a file with another checksum.
        FileNotFoundError: a file is missing and there is no network; the message says what to put where.
    """
    return load(FASHION_MNIST, split, data_dir, archive)
