"""What every data set is: random access to uint8 images, and the few facts that models need."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32, Integer, UInt8

MEMORY_LIMIT = 2 * 2**30  # bytes of decoded pixels; CIFAR-10 takes 0.15 GiB, 64x64 RGB reaches it at 174,762 images
MAX_LISTED = 50  # lines of one error message

Record = dict[str, Any]
"""{"image": uint8 [h, w, c]}, and where the set has them "label": np.int32 and "text": int32 [length]."""


class UnreadableImage(ValueError):
    """One image is damaged; the message says which and how."""


@runtime_checkable
class Source(Protocol):
    """Random access to records; index i means the same image on every host and in every run."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: SupportsIndex, /) -> Record: ...


@dataclass(frozen=True)
class Dataset:
    """A split of a data set.

    Attributes:
        source: `source[i]` is {"image": uint8 [h, w, c], "label": np.int32, "text": int32 [caption_length]}, without
            "label" in an unlabelled set, and without "text" in a set without captions.
        shape: (h, w, c), the same for every image; (2,) for points in the plane.
        num_values: stored intensities are 0..num_values-1: 256 for 8-bit images, 17 for scikit-learn's digits; 0 for
            values that are no intensities but float32 in [-1, 1] already.
        class_names: the name of label 0, 1, ...; () in an unlabelled set.
        caption_length: tokens in each record's "text", int32 [caption_length] (`data/captions.py`); 0 without captions.
        captions: some of the set's captions, each once, for samples to be drawn of; () without captions.
    """

    source: Source
    shape: tuple[int, ...]
    num_values: int = 256
    class_names: tuple[str, ...] = ()
    caption_length: int = 0
    captions: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Returns the number of classes, 0 in an unlabelled set."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True)
class MemorySource:
    """Records that lie in arrays: images [n, ...], labels [n] or None, and captions' tokens [n, length] or None."""

    images: UInt8[np.ndarray, "n h w c"] | Float32[np.ndarray, "n ..."]
    labels: Integer[np.ndarray, " n"] | None = None
    text: Int32[np.ndarray, "n length"] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: SupportsIndex, /) -> Record:
        return self.gather(index)

    @property
    def columns(self) -> Record:
        """Returns the arrays under the names that they have in a record."""
        columns = {"image": self.images, "label": self.labels, "text": self.text}
        return {key: column for key, column in columns.items() if column is not None}

    def gather(self, indices: SupportsIndex | Integer[np.ndarray, " m"]) -> Record:
        """Returns the records at `indices` as one batch of copies, all at once."""
        return {key: column[indices] for key, column in self.columns.items()}


def from_arrays(
    images: UInt8[np.ndarray, "..."],
    labels: Integer[np.ndarray, "..."] | None = None,
    *,
    num_values: int = 256,
    class_names: Sequence[str] = (),
) -> Dataset:
    """Returns a Dataset that reads from arrays in memory (not copied).

    Args:
        images: [n, h, w, c], intensities 0..num_values-1, n at least 1.
        labels: [n], values 0..len(class_names)-1, given exactly when class_names is.
        num_values: number of stored intensities.
        class_names: one name for each class.

    Raises:
        ValueError: an array has another shape, or labels and class names do not fit together.
    """
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images have shape {images.shape}; expected [n, h, w, c] with n at least 1.")
    if (labels is None) == bool(class_names):
        raise ValueError("labels and class_names go together: pass both, or neither.")
    if labels is not None:
        if labels.shape != images.shape[:1]:
            raise ValueError(f"labels have shape {labels.shape}; expected {images.shape[:1]}, one for each image.")
        if labels.min() < 0 or labels.max() >= len(class_names):
            raise ValueError(
                f"labels run from {labels.min()} to {labels.max()}; {len(class_names)} class names "
                f"allow 0..{len(class_names) - 1}."
            )
        labels = labels.astype(np.int32)
    _, height, width, channels = images.shape
    return Dataset(MemorySource(images, labels), (height, width, channels), num_values, tuple(class_names))


def decode_into_memory(source: Source, shape: tuple[int, int, int], *, limit: int = MEMORY_LIMIT) -> Source:
    """Returns `source` decoded once into arrays where they fit `limit`, else `source` itself.

    Decoding a PNG costs more than everything else in the pipeline together, so a set that fits is
    decoded before training, with a progress bar; a larger one stays on disk and is decoded as it is
    read.

    Args:
        source: at least one record, all images of `shape`.
        shape: (h, w, c).
        limit: bytes that the uint8 images may take.

    Raises:
        ValueError: the source raised UnreadableImage; the message names all that it did so for.
    """
    if len(source) * math.prod(shape) > limit:
        return source
    from tqdm import tqdm

    images = np.empty((len(source), *shape), np.uint8)
    besides: dict[str, list[Any]] = {"label": [], "text": []}
    problems = []
    for i in tqdm(range(len(source)), desc="decoding images", unit=" images", disable=None):
        try:
            record = source[i]
        except UnreadableImage as problem:
            problems.append(str(problem))
            continue
        images[i] = record["image"]
        for key, values in besides.items():
            values += [record[key]] if key in record else []
    require_readable(problems, len(source))
    labels, text = (np.stack(values) if values else None for values in besides.values())
    return MemorySource(images, labels, text)


def require_readable(problems: Sequence[str], num_images: int) -> None:
    """Returns None if `problems` is empty.

    Raises:
        ValueError: it is not; the message says for each bad image what is wrong.
    """
    if problems:
        raise ValueError(
            f"{len(problems)} of {num_images} images cannot be used; repair or remove them:\n" + listing(problems)
        )


def listing(lines: Sequence[str]) -> str:
    """Returns the lines indented, one below the other, the first MAX_LISTED of them."""
    more = [f"... and {len(lines) - MAX_LISTED} more"] if len(lines) > MAX_LISTED else []
    return "".join(f"  {line}\n" for line in [*lines[:MAX_LISTED], *more])


def require_split(split: str, known: Sequence[str], what: str) -> None:
    """Returns None if `split` is one of `known`.

    Raises:
        ValueError: it is not; the message lists the splits that `what` has.
    """
    if split not in known:
        raise ValueError(f"split {split!r} is unknown; {what} has {', '.join(map(repr, known))}.")
