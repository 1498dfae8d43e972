"""Batches are the same from the devices, from memory and from the disk, one by one and several at once."""

import contextlib
import threading
import time

import grain
import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from diffusion import devices
from diffusion.data import pipeline
from diffusion.data.dataset import Dataset, MemorySource, from_arrays
from diffusion.training.feed import AHEAD, SHARE, Feed, feed

MESH = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "fsdp"))
LINE = {"batch_size": 16, "seed": 3}
RANDOM = np.random.default_rng(0)


class OnDisk:
    """A set whose records are made one by one."""

    def __init__(self, dataset):
        self._source = dataset.source

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        return self._source[int(index)]


def pictures(num_values=256):
    images = RANDOM.integers(0, num_values, (25, 3, 4, 2), np.uint8)
    return from_arrays(images, RANDOM.integers(0, 3, 25), num_values=num_values, class_names=("a", "b", "c"))


SETS = {
    "8-bit": pictures(),
    "17 values": pictures(17),
    "points": Dataset(MemorySource(RANDOM.uniform(-1, 1, (25, 2)).astype(np.float32)), (2,), num_values=0),
    "captions": Dataset(
        MemorySource(
            RANDOM.integers(0, 256, (25, 2, 2, 1), np.uint8), text=RANDOM.integers(0, 9, (25, 5)).astype(np.int32)
        ),
        (2, 2, 1),
        caption_length=5,
    ),
}


def batches(source, first, last, stacked=1):
    """The batches as the step has them, whatever the feed."""
    read = jax.jit(source.read)
    held = devices.put(source.held, devices.replicated(MESH))
    with contextlib.closing(source.ahead(first, last, MESH, stacked=stacked)) as ahead:
        for rows in ahead:
            for i in range(stacked):
                yield jax.device_get(read(held, rows if stacked == 1 else jax.tree.map(lambda x: x[i], rows)))  # noqa: B023


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("stacked", [1, 3])
@pytest.mark.parametrize("on_devices", [True, False])
def test_every_way_gives_the_bits_of_the_stream(name, stacked, on_devices):
    flip = len(SETS[name].shape) == 3
    stream = pipeline.batches(SETS[name], flip=flip, **LINE)
    source = feed(SETS[name], MESH, on_devices=on_devices, flip=flip, **LINE)
    found = list(batches(source, 3, 9, stacked))
    assert len(found) == 6
    for i, batch in enumerate(found):
        expected = stream[3 + i]
        assert batch.keys() == expected.keys()
        for key, value in expected.items():
            assert batch[key].dtype == value.dtype
            np.testing.assert_array_equal(batch[key], value, err_msg=f"{key} of batch {3 + i}")


def test_a_set_on_the_disk_gives_the_same_in_order():
    stored = SETS["8-bit"]
    source = feed(Dataset(OnDisk(stored), stored.shape, class_names=stored.class_names), MESH, flip=True, **LINE)
    assert source.held == {}
    stream = pipeline.batches(stored, flip=True, **LINE)
    for i, batch in enumerate(batches(source, 0, 20)):
        np.testing.assert_array_equal(batch["image"], stream[i]["image"])
    assert i == 19


def test_devices_take_their_rows_without_talking_to_each_other():
    source = feed(SETS["captions"], MESH, flip=True, **LINE)
    held = devices.put(source.held, devices.replicated(MESH))
    with contextlib.closing(source.ahead(0, 1, MESH)) as ahead:
        compiled = jax.jit(source.read, out_shardings=devices.split(MESH)).lower(held, next(ahead)).compile().as_text()
    assert "gather" in compiled
    for words in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert words not in compiled


@pytest.mark.parametrize(("room", "kept"), [(SHARE, True), (SHARE - 1, False), (None, False)])
def test_it_lies_on_the_devices_where_it_takes_a_small_share_of_them(monkeypatch, room, kept):
    source = SETS["8-bit"].source
    size = source.images.nbytes + source.labels.nbytes
    monkeypatch.setattr(devices, "memory_limit", lambda device: room and room * size)
    assert bool(feed(SETS["8-bit"], MESH, **LINE).held) == kept
    assert feed(SETS["8-bit"], MESH, on_devices=True, **LINE).held
    assert not feed(SETS["8-bit"], MESH, on_devices=False, **LINE).held


@pytest.mark.parametrize("on_devices", [True, False])
def test_processes_that_would_have_nothing_to_do_are_named(on_devices):
    words = feed(SETS["points"], MESH, on_devices=on_devices, num_workers=2, **LINE).words
    assert words.endswith("(data.num_workers is for sets on the disk)")


def test_the_host_reads_no_more_ahead_than_a_limit_of_bytes():
    asked = []

    def row(i):
        asked.append(i)
        return {"index": np.full(8, i)}

    source = Feed(rows=grain.MapDataset.range(1000).map(row), threads=16, size=2**30)
    with contextlib.closing(source.ahead(0, 1000, MESH)) as ahead:
        next(ahead)
        time.sleep(0.3)
    assert len(asked) <= 1 + AHEAD + (2 + AHEAD) + 2 + 1  # on the devices, in the host's buffer, in its two threads
    assert source.on_devices_ahead(MESH, 8, stacked=3) == (AHEAD + 8) * 3 * 2**30 // 8


def test_what_cannot_be_is_refused():
    stored = SETS["8-bit"]
    on_disk = Dataset(OnDisk(stored), stored.shape, class_names=stored.class_names)
    with pytest.raises(ValueError, match=r"data.on_devices=True .* read from the disk; leave it out"):
        feed(on_disk, MESH, on_devices=True, **LINE)
    with pytest.raises(ValueError, match="data.num_workers is -1, expected 0"):
        feed(on_disk, MESH, num_workers=-1, **LINE)
    too_bright = from_arrays(np.full((4, 2, 2, 1), 255, np.uint8), num_values=17)
    with pytest.raises(ValueError, match="an intensity of 255 was found where num_values=17"):
        feed(too_bright, MESH, on_devices=True, **LINE)


class TestAhead:
    """The reader: no further than it is told, and what goes wrong there is heard here."""

    def rows(self, asked, bad=None):
        def row(i):
            asked.append(i)
            if i == bad:
                raise ValueError(f"image {i} is damaged")
            return {"index": np.full(8, i)}

        return Feed(rows=grain.MapDataset.range(1000).map(row))

    def test_it_reads_a_few_batches_more_than_are_used(self):
        asked = []
        with contextlib.closing(self.rows(asked).ahead(5, 900, MESH)) as ahead:
            first = [int(next(ahead)["index"][0]) for _ in range(4)]
        assert first == [5, 6, 7, 8]
        assert set(range(5, 9)) <= set(asked) <= set(range(5, 9 + 2 * AHEAD + 4))

    def test_it_ends_where_it_is_told(self):
        with contextlib.closing(self.rows([]).ahead(5, 8, MESH)) as ahead:
            assert [int(rows["index"][0]) for rows in ahead] == [5, 6, 7]

    def test_an_error_of_the_data_reaches_the_loop_at_its_own_step(self):
        with contextlib.closing(self.rows([], bad=7).ahead(5, 100, MESH)) as ahead:
            assert [int(next(ahead)["index"][0]) for _ in range(2)] == [5, 6]
            with pytest.raises(ValueError, match="image 7 is damaged"):
                next(ahead)

    def test_no_thread_is_left(self):
        before = threading.active_count()
        ahead = self.rows([]).ahead(0, 100, MESH)
        next(ahead)
        ahead.close()
        deadline = time.monotonic() + 20
        while threading.active_count() > before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert threading.active_count() == before
