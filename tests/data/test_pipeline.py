"""Laws of the stream: pure in (seed, step), every image once an epoch, independent of the hosts."""

import itertools
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from diffusion.data.dataset import from_arrays
from diffusion.data.pipeline import batches, epoch


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def is_flipped(batch):
    """Returns for each of the `numbered` images whether its number stands in the last column.

    Image 0 is all zero, so it cannot tell: leave it out.
    """
    return batch["image"][:, 0, 2, 0] > -1


def test_batch_holds_scaled_pixels_and_labels(numbered):
    batch = batches(numbered(50), batch_size=8, seed=1)[3]
    assert batch["image"].dtype == np.float32
    assert batch["label"].dtype == np.int32
    np.testing.assert_allclose(batch["image"][:, :, 0, 0], np.stack([batch["label"]] * 2, 1) / 127.5 - 1, atol=1e-7)
    np.testing.assert_array_equal(batch["image"][:, :, 1:], -1)


def test_pure_in_seed_and_step(numbered):
    def make(seed):
        return batches(numbered(50), batch_size=8, seed=seed, flip=True)

    stream, again = make(3), make(3)
    forward = [stream[step] for step in range(20)]
    backward = [again[step] for step in reversed(range(20))][::-1]
    assert all(same(a, b) for a, b in zip(forward, backward, strict=True))
    assert not same(forward[0], forward[1])
    assert not same(forward[0], make(4)[0])


def test_resume_far_into_a_run(numbered):
    stream = batches(numbered(7), batch_size=4, seed=0, flip=True)
    run = list(itertools.islice(iter(stream), 500))
    resumed = batches(numbered(7), batch_size=4, seed=0, flip=True)
    assert same(resumed[499], run[499])
    assert len(resumed[10**12]["label"]) == 4  # no state to build up, however late the step


def test_same_stream_in_another_process(numbered):
    code = """
import numpy as np
from diffusion.data.dataset import from_arrays
from diffusion.data.pipeline import batches
images = np.zeros((20, 2, 3, 1), np.uint8)
images[:, :, 0, 0] = np.arange(20)[:, None]
stream = batches(from_arrays(images), batch_size=6, seed=5, flip=True)
print(np.round((stream[7]["image"] + 1) * 127.5).astype(int).sum((1, 3)).tolist())
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    images = np.stack([numbered(20).source[i]["image"] for i in range(20)])
    here = batches(from_arrays(images), batch_size=6, seed=5, flip=True)[7]["image"]
    expected = np.round((here + 1) * 127.5).astype(int).sum((1, 3)).tolist()
    assert answer.stdout.strip() == str(expected)


@pytest.mark.parametrize(("n", "batch_size"), [(12, 4), (10, 4), (7, 16), (1, 3)])
def test_every_image_once_in_every_epoch(numbered, n, batch_size):
    stream = batches(numbered(n), batch_size=batch_size, seed=2)
    num_epochs = 2 * batch_size
    labels = np.concatenate([stream[step]["label"] for step in range(n * num_epochs // batch_size)])
    epochs = labels.reshape(num_epochs, n)
    for labels in epochs:
        np.testing.assert_array_equal(np.sort(labels), np.arange(n))
    if n > 1:
        assert len({tuple(labels) for labels in epochs}) > 1


def test_batch_size_only_cuts_the_line(numbered):
    def line(batch_size):
        stream = batches(numbered(10), batch_size=batch_size, seed=3, flip=True)
        return np.concatenate([stream[step]["image"] for step in range(24 // batch_size)])

    np.testing.assert_array_equal(line(4), line(24))
    np.testing.assert_array_equal(line(1), line(24))


def test_stream_stays_the_same_over_versions(numbered):
    # The first two epochs of seed 0, pinned: a run must be resumable after an upgrade.
    bits = np.random.PCG64(np.random.SeedSequence((0, 1))).random_raw(10)
    stream = batches(numbered(5), batch_size=5, seed=0, flip=True)
    assert stream[0]["label"].tolist() == [3, 2, 1, 0, 4]
    np.testing.assert_array_equal(stream[1]["label"], np.argsort(bits[:5]))
    np.testing.assert_array_equal(
        is_flipped(stream[1])[stream[1]["label"] > 0], (bits[5:] >> 63 == 1)[stream[1]["label"] > 0]
    )


def test_shuffle_is_uniform(numbered):
    stream = batches(numbered(5), batch_size=5, seed=0)
    order = np.stack([stream[step]["label"] for step in range(2000)])
    counts = np.stack([np.bincount(order[:, place], minlength=5) for place in range(5)])
    assert np.abs(counts - 400).max() < 5 * np.sqrt(2000 * 0.2 * 0.8)


@pytest.mark.parametrize("process_count", [2, 4])
def test_hosts_side_by_side_read_what_one_host_reads(numbered, process_count):
    whole = batches(numbered(11), batch_size=8, seed=6, flip=True)
    hosts = [
        batches(
            numbered(11),
            batch_size=8,
            seed=6,
            flip=True,
            process_index=index,
            process_count=process_count,
        )
        for index in range(process_count)
    ]
    for step in range(12):
        parts = [host[step] for host in hosts]
        for key, expected in whole[step].items():
            assert len(parts[0][key]) == 8 // process_count
            np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), expected)


def test_flips_are_mirror_images_and_change_nothing_else(numbered):
    plain = batches(numbered(100), batch_size=50, seed=8)
    flipped = batches(numbered(100), batch_size=50, seed=8, flip=True)
    for step in range(8):
        np.testing.assert_array_equal(flipped[step]["label"], plain[step]["label"])
        mirrored = is_flipped(flipped[step])
        expected = plain[step]["image"].copy()
        expected[mirrored] = expected[mirrored][:, :, ::-1]
        np.testing.assert_array_equal(flipped[step]["image"], expected)


def test_half_is_flipped_independently_of_image_and_epoch(numbered):
    stream = batches(numbered(100), batch_size=100, seed=9, flip=True)
    table = np.zeros((100, 100), bool)  # [epoch, image]
    for step in range(100):
        batch = stream[step]
        table[step, batch["label"]] = is_flipped(batch)
    table = table[:, 1:]
    half = table.size / 2
    assert abs(table.sum() - half) < 5 * np.sqrt(half / 2)
    assert np.abs(table.sum(0) - 50).max() < 5 * 5  # each image is flipped in half of the epochs
    assert np.abs(table.sum(1) - 49.5).max() < 5 * 5  # in each epoch half of the images is
    assert not np.array_equal(table[0], table[1])


def test_no_flip_unless_asked(numbered):
    stream = batches(numbered(100), batch_size=100, seed=9)
    assert not any(is_flipped(stream[step]).any() for step in range(10))


def test_unlabelled_and_few_values():
    images = np.arange(17, dtype=np.uint8).reshape(17, 1, 1, 1)
    batch = batches(from_arrays(images, num_values=17), batch_size=17, seed=0)[0]
    assert list(batch) == ["image"]
    np.testing.assert_array_equal(np.sort(batch["image"].ravel()), np.arange(-8, 9) / 8)


@pytest.mark.parametrize("batch_size", [1, 4, 5, 10, 99])
def test_epoch_is_one_pass_in_order(numbered, batch_size):
    passed = epoch(numbered(10), batch_size=batch_size)
    labels = [batch["label"] for batch in passed]
    assert len(passed) == len(labels) == -(-10 // batch_size)
    assert Counter(map(len, labels[:-1])) == Counter([batch_size] * (len(labels) - 1))
    np.testing.assert_array_equal(np.concatenate(labels), np.arange(10))
    images = np.concatenate([batch["image"] for batch in passed])
    np.testing.assert_allclose(images[:, 0, 0, 0], np.arange(10) / 127.5 - 1, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; expected 1 or more"),
        ({"batch_size": 9, "process_count": 2}, "2 hosts cannot share evenly; write a multiple of 2"),
        ({"process_index": 2, "process_count": 2}, r"process_index is 2; expected 0\.\.1"),
        ({"seed": -1}, "seed is -1; expected 0"),
    ],
)
def test_errors(numbered, options, message):
    with pytest.raises(ValueError, match=message):
        batches(numbered(10), **{"batch_size": 4, "seed": 0, **options})
    with pytest.raises(ValueError, match="batch_size is 0"):
        epoch(numbered(10), batch_size=0)
