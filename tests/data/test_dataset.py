"""Data sets in memory, and the decision between memory and disk."""

import numpy as np
import pytest

from diffusion.data.dataset import MemorySource, decode_into_memory, from_arrays

IMAGES = np.arange(5 * 2 * 3 * 1, dtype=np.uint8).reshape(5, 2, 3, 1)


class Counting:
    """A source that counts how often it is read."""

    def __init__(self, labelled):
        self.labelled = labelled
        self.reads = 0

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, index):
        self.reads += 1
        record = {"image": IMAGES[index]}
        return record | {"label": np.int32(index * 2)} if self.labelled else record


@pytest.mark.parametrize("labelled", [True, False])
def test_decoding_once_keeps_every_record(labelled):
    source = Counting(labelled)
    memory = decode_into_memory(source, (2, 3, 1))
    assert isinstance(memory, MemorySource)
    assert (len(memory), source.reads) == (5, 5)
    for i in range(5):
        np.testing.assert_array_equal(memory[i]["image"], IMAGES[i])
        assert memory[i].get("label") == (2 * i if labelled else None)
    assert source.reads == 5


def test_limit_decides_to_the_byte():
    source = Counting(labelled=True)
    assert decode_into_memory(source, (2, 3, 1), limit=29) is source
    assert source.reads == 0
    assert isinstance(decode_into_memory(source, (2, 3, 1), limit=30), MemorySource)


def test_from_arrays():
    dataset = from_arrays(IMAGES, np.array([0, 1, 1, 0, 1]), class_names=["a", "b"])
    assert (dataset.shape, dataset.num_values, len(dataset)) == ((2, 3, 1), 256, 5)
    assert (dataset.num_classes, dataset.class_names) == (2, ("a", "b"))
    np.testing.assert_array_equal(dataset.source[3]["image"], IMAGES[3])
    assert isinstance(dataset.source[1]["label"], np.int32)
    assert dataset.source[1]["label"] == 1
    assert from_arrays(IMAGES).num_classes == 0
    assert list(from_arrays(IMAGES).source[0]) == ["image"]


@pytest.mark.parametrize(
    ("images", "labels", "names", "message"),
    [
        (IMAGES[0], None, (), r"\(2, 3, 1\); expected \[n, h, w, c\]"),
        (IMAGES[:0], None, (), "n at least 1"),
        (IMAGES, np.zeros(5, int), (), "go together"),
        (IMAGES, None, ("a",), "go together"),
        (IMAGES, np.zeros(4, int), ("a",), r"\(4,\); expected \(5,\)"),
        (IMAGES, np.arange(5), ("a", "b"), r"from 0 to 4; 2 class names allow 0\.\.1"),
    ],
)
def test_errors(images, labels, names, message):
    with pytest.raises(ValueError, match=message):
        from_arrays(images, labels, class_names=names)
