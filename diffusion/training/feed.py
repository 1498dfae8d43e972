"""How batches reach the compiled step: out of arrays that lie on the devices, or out of this process's memory or disk.

The batch of a step is the same either way, to the last bit. A data set on the devices costs a step the transfer of some
indices; one that does not fit there is read ahead, and put on the devices ahead.
"""

import dataclasses
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh

from diffusion import devices
from diffusion.data import pipeline
from diffusion.data.dataset import MEMORY_LIMIT, Dataset, MemorySource
from diffusion.data.scaling import check_values, to_unit_range

SHARE = 8
"""A data set is kept on the devices by itself where it takes no more than one part in so many of a device's memory."""

AHEAD = 2
"""Dispatches whose rows lie on the devices before they are needed, and batches read by the host beyond its threads'."""

READ_AHEAD = 2**30
"""Bytes that threads of the host read ahead, or one batch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feed:
    """Where the batches of a training come from.

    rows: endless; rows[i] is what this process hands over for batch i, a pure function of i.
    held: host arrays that every device is to hold whole (`devices.replicated`), such as the data set; {} for none.
    read(held, rows): the batch, {"image": float32 [batch, h, w, c], ...}, inside the step's program.
    size: bytes of one row of `rows`. threads, workers: of this process that read rows, or processes beside it.
    words: all this for people.
    """

    rows: grain.MapDataset
    held: dict[str, Any] = dataclasses.field(default_factory=dict)
    read: Callable[[Any, Any], Any] = lambda held, rows: rows
    size: int = 0
    threads: int = 1
    workers: int = 0
    words: str = ""

    def ahead(self, first: int, last: int, mesh: Mesh, *, stacked: int = 1) -> Any:
        """An iterator over rows[first:last], as global arrays on the mesh, read while others are worked on; close it.

        stacked: how many come at once, one behind the other along a new first axis; it divides first and last.
        """
        threads = min(self.threads, 1 + READ_AHEAD // max(1, self.size * stacked))
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + AHEAD)
        read = self._stacked(stacked)[first // stacked : last // stacked].to_iter_dataset(options)
        if self.workers:
            if not flags.FLAGS.is_parsed():  # as in notebooks; Grain asks a flag of its own
                flags.FLAGS.mark_as_parsed()
            read = read.mp_prefetch(grain.MultiprocessingOptions(self.workers), _begin_worker)
        put = read.map(lambda rows: devices.from_local_rows(rows, mesh, axis=int(stacked > 1)))
        return iter(grain.experimental.ThreadPrefetchIterDataset(put, prefetch_buffer_size=AHEAD))

    def now(self, first: int, mesh: Mesh, *, stacked: int = 1) -> Any:
        """What `ahead` would give first, read here and at once."""
        return devices.from_local_rows(self._stacked(stacked)[first // stacked], mesh, axis=int(stacked > 1))

    @property
    def readers(self) -> int:
        """How many batches are read at the same time."""
        return self.workers or self.threads

    def on_devices_ahead(self, mesh: Mesh, dispatches: int, *, stacked: int = 1) -> int:
        """Bytes of rows that wait on each device, besides those of a running step, while so many are dispatched."""
        return (AHEAD + dispatches) * stacked * self.size // len(mesh.local_devices)

    def _stacked(self, stacked: int) -> grain.MapDataset:
        return self.rows if stacked == 1 else self.rows.batch(stacked)


def _begin_worker(index: int, count: int) -> None:
    """In each process that reads: signals are the training's to answer, and the process ends when the training does."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(0)


def feed(dataset: Dataset, mesh: Mesh, *, on_devices: bool | None = None, num_workers: int = 0, **line: Any) -> Feed:
    """The Feed of this process for the shuffled line of `pipeline.plans(dataset, **line)`.

    on_devices: whether the data set is kept on the devices; None where it lies in memory and takes no more than a share
    of theirs (`SHARE`). num_workers: processes that read a set from the disk; 0 reads in threads.

    ValueError for a set that is to be kept on the devices but does not fit into memory, for num_workers below 0, and
    for what `plans` refuses.
    """
    if num_workers < 0:
        raise ValueError(f"data.num_workers is {num_workers}, expected 0 (threads) or how many processes read.")
    hosts = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    plans = pipeline.plans(dataset, **line, **hosts)
    source = dataset.source
    if not isinstance(source, MemorySource):
        if on_devices:
            raise ValueError(
                "data.on_devices=True keeps a data set on the devices, but this one takes more than "
                f"{MEMORY_LIMIT / 2**30:g} GiB of pixels and is read from the disk; leave it out, and give "
                "data.num_workers=N processes to read it."
            )
        return _from_host(dataset, plans, num_workers)
    unused = " (data.num_workers is for sets on the disk)" if num_workers else ""
    size = sum(column.nbytes for column in source.columns.values())
    if on_devices is None:
        on_devices = not devices.any_process(not _fits(size, mesh))
    if not on_devices:
        return _from_host(dataset, plans, 0, unused)
    held: dict[str, Any] = {"columns": source.columns}
    if dataset.num_values:
        check_values(source.images, dataset.num_values)
        held["values"] = to_unit_range(np.arange(dataset.num_values, dtype=np.uint8), dataset.num_values)
    return Feed(rows=plans, held=held, read=_from_held, words=f"on the devices, {size / 1e6:.3g} MB on each{unused}")


def _fits(size: int, mesh: Mesh) -> bool:
    limit = devices.memory_limit(mesh.local_devices[0])
    return limit is not None and SHARE * size <= limit


def _from_host(dataset: Dataset, plans: grain.MapDataset, num_workers: int, unused: str = "") -> Feed:
    """The Feed that reads images in this process, or in others."""
    rows = plans.map(partial(pipeline.read, dataset=dataset))
    size = 4 * len(plans[0]["index"]) * math.prod(dataset.shape)
    if isinstance(dataset.source, MemorySource):
        return Feed(rows=rows, size=size, words=f"in this process's memory, read ahead{unused}")
    if num_workers:
        words = f"on the disk, read ahead by {num_workers} processes"
        return Feed(rows=rows, size=size, workers=num_workers, words=words)
    cores = devices.cores()
    return Feed(rows=rows, size=size, threads=cores, words=f"on the disk, read ahead in {cores} threads")


def _from_held(held: Mapping[str, Any], rows: Mapping[str, Any]) -> dict[str, Any]:
    """The batch of a plan out of the held columns.

    Intensities are looked up in a table that the host made, since compilers may replace a division by a product, which
    rounds otherwise.
    """
    index = rows["index"]
    batch = {name: column.at[index].get(mode="promise_in_bounds") for name, column in held["columns"].items()}
    image = batch["image"]
    if "mirrored" in rows:
        image = jnp.where(rows["mirrored"][:, None, None, None], image[:, :, ::-1], image)
    if "values" in held:
        image = held["values"].at[image.astype(jnp.int32)].get(mode="promise_in_bounds")
    return {**batch, "image": image}
