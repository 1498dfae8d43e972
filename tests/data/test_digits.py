"""The built-in digits and their fixed split."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from diffusion.data.digits import digits

CLASS_SIZES = np.array([178, 182, 177, 183, 181, 182, 181, 179, 174, 180])


def arrays(split):
    source = digits(split).source
    records = [source[i] for i in range(len(source))]
    return np.stack([r["image"] for r in records]), np.array([r["label"] for r in records])


def test_facts():
    dataset = digits()
    assert (dataset.shape, dataset.num_values, dataset.num_classes) == ((8, 8, 1), 17, 10)
    assert dataset.class_names[3] == "3"
    record = dataset.source[0]
    assert (record["image"].dtype, record["image"].shape) == (np.uint8, (8, 8, 1))
    assert isinstance(record["label"], np.int32)
    assert (len(digits("train")), len(digits("test"))) == (1500, 297)


def test_split_is_stratified():
    _, train = arrays("train")
    _, test = arrays("test")
    np.testing.assert_array_equal(np.bincount(test), (CLASS_SIZES + 1) // 6)
    np.testing.assert_array_equal(np.bincount(train) + np.bincount(test), CLASS_SIZES)


def test_splits_are_disjoint_and_together_everything():
    # No two of the 1,797 scans are equal, so comparing pixels compares images.
    everything = {scan.astype(np.uint8).tobytes() for scan in load_digits().images}
    train = {image.tobytes() for image in arrays("train")[0]}
    test = {image.tobytes() for image in arrays("test")[0]}
    assert (len(everything), len(train), len(test)) == (1797, 1500, 297)
    assert not train & test
    assert train | test == everything


def test_split_is_the_documented_one():
    scans = load_digits()
    of_class_4 = scans.images[scans.target == 4]
    images, labels = arrays("test")
    np.testing.assert_array_equal(images[labels == 4][..., 0], of_class_4[[*range(4, 181, 6)]])


def test_unknown_split():
    with pytest.raises(ValueError, match=r"split 'validation' .* digits has 'train', 'test'"):
        digits("validation")


def test_import_is_cheap():
    code = (
        "import sys, diffusion.data.digits, diffusion.data.image_folder, diffusion.data.cifar10;"
        "print([m for m in ('sklearn', 'PIL', 'tensorflow_datasets', 'grain', 'jax')"
        " if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
