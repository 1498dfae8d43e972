"""Batches as a pure function of (seed, step).

A data set is read as one endless line of images: epoch after epoch, each a fresh permutation of the
whole set, each image with a fresh coin that says whether it is mirrored. Where an image stands in
this line is all that decides what it looks like:

    order_e, coin_e = random bits of (seed, epoch e)
    line[e n + k]   = image order_e[k], mirrored if coin_e[k]

A batch of B is a cut of the line, `line[step B : (step + 1) B]`, and host p of P takes the p-th of P
equal parts of the cut, which is where a global array split over the hosts has its rows. So the laws
hold by construction: a resumed run just asks for the next step, every image comes once in every epoch,
P hosts together read what one host reads, and the batch size cuts the line without changing it.

Only bit generators and sorting are used, whose results NumPy keeps the same in all versions. The
pipelines are `grain.MapDataset`s: index them, or let `to_iter_dataset` read ahead in threads. `plans`
says which images a batch takes, for whoever holds the images already; `read` takes them out of the set.
"""

import sys
import threading
from functools import lru_cache, partial
from typing import Any

import grain
import numpy as np
from jaxtyping import Bool, Int

from diffusion.data.dataset import Dataset, MemorySource, Record, Source
from diffusion.data.scaling import to_unit_range


def batches(dataset: Dataset, **line: Any) -> grain.MapDataset:
    """Returns an endless stream: `stream[step]` is this host's part of shuffled batch 0, 1, ...

    A batch is {"image": float32 [batch_size / process_count, h, w, c] in [-1, 1], "label": int32
    [...]}, without "label" in an unlabelled set. Batches cross the border between two epochs, so
    none is short and no image is left out; a batch larger than the data set is fine.

    line: batch_size, seed, flip and hosts, as `plans` takes them; its errors are those of `plans`.
    """
    return plans(dataset, **line).map(partial(read, dataset=dataset))


def plans(
    dataset: Dataset,
    *,
    batch_size: int,
    seed: int,
    flip: bool = False,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset:
    """Returns an endless stream: `stream[step]` says which images this host's part of batch 0, 1, ... takes.

    A plan is {"index": int32 [batch_size / process_count], "mirrored": bool [...]}, without "mirrored" where
    nothing is flipped.

    Args:
        dataset: the split; only its size and shape are looked at.
        batch_size: images in a step over all hosts together.
        seed: 0 or more; decides order and flips. Every epoch draws both anew.
        flip: mirror each image left to right with probability 1/2.
        process_index: which host this is, 0..process_count-1.
        process_count: number of hosts.

    Raises:
        ValueError: a number is out of range, or batch_size is not a multiple of process_count.
    """
    _require_batch_size(batch_size)
    if flip and len(dataset.shape) != 3:
        raise ValueError(f"data.flip mirrors images, but a sample has the shape {dataset.shape}; leave flip out.")
    if seed < 0:
        raise ValueError(f"seed is {seed}; expected 0 or more.")
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index is {process_index}; expected 0..{process_count - 1} for process_count={process_count}."
        )
    if batch_size % process_count:
        raise ValueError(
            f"batch_size is {batch_size} over all hosts, which {process_count} hosts cannot share evenly; write a "
            f"multiple of {process_count}."
        )
    share = batch_size // process_count
    places = np.arange(process_index * share, (process_index + 1) * share)
    cut = partial(_cut, num_images=len(dataset), batch_size=batch_size, places=places, seed=seed, flip=flip)
    return grain.MapDataset.range(sys.maxsize // batch_size).map(cut)


def epoch(dataset: Dataset, *, batch_size: int) -> grain.MapDataset:
    """Returns one pass over `dataset` in its own order: `len` batches, iterable, scaled as `batches` scales.

    The last batch is shorter where batch_size does not divide the number of images. Nothing is random.

    Raises:
        ValueError: batch_size is below 1.
    """
    _require_batch_size(batch_size)
    starts = grain.MapDataset.range(0, len(dataset), batch_size)
    return starts.map(partial(_slice, dataset=dataset, batch_size=batch_size))


def read(plan: Record, dataset: Dataset) -> Record:
    """Returns the batch of this plan."""
    batch = _read(dataset.source, plan["index"])
    if "mirrored" in plan:
        mirrored = plan["mirrored"]
        batch["image"][mirrored] = batch["image"][mirrored, :, ::-1]
    return _scale(batch, dataset)


def _cut(
    step: int,
    num_images: int,
    batch_size: int,
    places: Int[np.ndarray, " local"],
    seed: int,
    flip: bool,
) -> Record:
    """Returns which images stand at `places` of the batch number `step`."""
    epochs, in_epoch = np.divmod(step * batch_size + places, num_images)
    index = np.empty(len(in_epoch), np.int32)
    mirrored = np.empty(len(in_epoch), bool)
    for number in np.unique(epochs):
        here = epochs == number
        with _PLANNING:  # threads that read wait for one plan, rather than each make it
            order, coins = _epoch_plan(seed, int(number), num_images)
        index[here] = order[in_epoch[here]]
        mirrored[here] = coins[in_epoch[here]]
    return {"index": index, "mirrored": mirrored} if flip else {"index": index}


def _slice(start: int, dataset: Dataset, batch_size: int) -> Record:
    """Returns the images from `start` on, at most `batch_size` of them."""
    return gather(dataset, np.arange(start, min(start + batch_size, len(dataset))))


def gather(dataset: Dataset, indices: Int[np.ndarray, " n"]) -> Record:
    """Returns the images at `indices` as one batch, scaled as `batches` scales."""
    return _scale(_read(dataset.source, indices), dataset)


_PLANNING = threading.Lock()


@lru_cache(maxsize=8)
def _epoch_plan(seed: int, number: int, num_images: int) -> tuple[Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Returns the order of the images in one epoch, and a fair coin for each place."""
    bits = np.random.PCG64(np.random.SeedSequence((seed, number))).random_raw(2 * num_images)
    order = np.argsort(bits[:num_images], kind="stable")
    return order, bits[num_images:] >= 2**63


def _read(source: Source, indices: Int[np.ndarray, " n"]) -> Record:
    """Returns the records at `indices`, stacked into arrays of their own."""
    if isinstance(source, MemorySource):
        return source.gather(indices)
    records = [source[index] for index in indices]
    return {key: np.stack([record[key] for record in records]) for key in records[0]}


def _scale(batch: Record, dataset: Dataset) -> Record:
    if dataset.num_values == 0:
        return batch
    return {**batch, "image": to_unit_range(batch["image"], dataset.num_values)}


def _require_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected 1 or more.")
