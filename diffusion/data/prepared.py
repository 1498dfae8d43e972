"""Reading a data set that already lies on disk in the layout of TensorFlow Datasets (TFDS), without
TensorFlow.

A prepared set is a folder `<data_dir>/<name>[/<config>]/<version>` with `dataset_info.json`,
`features.json` and shards. In the `array_record` file format the shards have random access and need
no TensorFlow; in the older default, `tfrecord`, only TensorFlow can read them. TFDS writes into a
temporary folder and renames it at the end, so a folder under its final name is complete.
"""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from diffusion.data.dataset import Dataset, Record, decode_into_memory, require_split


def data_root(data_dir: str | None) -> Path:
    """Returns `data_dir`, else $TFDS_DATA_DIR, else ~/tensorflow_datasets, as a whole path."""
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(chosen).expanduser().absolute()


def prepare_command(name: str, root: Path) -> str:
    """Returns the shell command that prepares `name` under `root`, given TensorFlow."""
    return (
        'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', data_dir='{root}', "
        "file_format='array_record').download_and_prepare()\""
    )


def open_folder(folder: Path, split: str, *, name: str, root: Path) -> Dataset:
    """Returns the data set that lies prepared in `folder`, in memory if it fits.

    The feature "image" is read, and "label" where it is a class label; other features are left
    alone.

    Args:
        folder: the folder that holds `dataset_info.json`.
        split: one of the splits in it.
        name: what TFDS calls the set, for messages.
        root: the data_dir that the folder was looked for in, for messages.

    Raises:
        ValueError: another file format, an unknown split, no 8-bit images, or images of several sizes.
    """
    _require_array_record(folder, name, root)
    import tensorflow_datasets

    logging.getLogger("absl").addFilter(_not_opencv_advice)
    builder = tensorflow_datasets.builder_from_directory(folder)
    require_split(split, sorted(builder.info.splits), f"{name} in {folder}")
    features = dict(builder.info.features)
    image = features.get("image")
    if not isinstance(image, tensorflow_datasets.features.Image) or image.np_dtype != np.uint8:
        raise ValueError(f"{name} in {folder} has the features {features}; expected 8-bit images under 'image'.")
    label = features.get("label")
    is_class = isinstance(label, tensorflow_datasets.features.ClassLabel)
    class_names: tuple[str, ...] = tuple(label.names) if label and is_class else ()
    records = builder.as_data_source(split=split)
    if len(records) == 0:
        raise ValueError(f"split {split!r} of {name} in {folder} is empty.")
    shape = records[0]["image"].shape
    source = PreparedSource(records, shape, bool(class_names), name)
    return Dataset(decode_into_memory(source, shape), shape, class_names=class_names)


@dataclass(frozen=True)
class PreparedSource:
    """Records of one split, decoded from disk as they are read."""

    records: Sequence[Any]
    shape: tuple[int, int, int]
    labelled: bool
    name: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: SupportsIndex, /) -> Record:
        record = self.records[index.__index__()]
        image = record["image"]
        if image.shape != self.shape:
            raise ValueError(
                f"{self.name} has images of several sizes: number 0 is {_size(self.shape)}, number "
                f"{index.__index__()} is {_size(image.shape)}. Models need one size: write the "
                "images into a folder and use image_folder(path, image_size=N)."
            )
        if not self.labelled:
            return {"image": image}
        return {"image": image, "label": np.int32(record["label"])}


def _require_array_record(folder: Path, name: str, root: Path) -> None:
    """Raises ValueError unless `folder` is a whole prepared set in the array_record format."""
    info = folder / "dataset_info.json"
    if not info.is_file():
        raise ValueError(
            f"{folder} has no dataset_info.json, so it is no prepared data set. Remove it and start again."
        )
    file_format = json.loads(info.read_text()).get("fileFormat", "tfrecord")
    if file_format != "array_record":
        elsewhere = root / "array_record"
        raise ValueError(
            f"{folder} is in the {file_format} format, which cannot be read without TensorFlow; "
            "expected array_record. Where TensorFlow is installed, run\n  "
            f"{prepare_command(name, elsewhere)}\n"
            f"and pass --config.data.data_dir={elsewhere}."
        )


def _not_opencv_advice(record: logging.LogRecord) -> bool:
    """Returns False for TFDS's advice to install OpenCV: Pillow decodes the same pixels."""
    return "OpenCV is not installed" not in str(record.msg)


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
