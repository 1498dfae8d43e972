"""Any other data set of TensorFlow Datasets, prepared beforehand where TensorFlow is installed."""

import re
from pathlib import Path

from diffusion.data.dataset import Dataset
from diffusion.data.prepared import data_root, open_folder, prepare_command

VERSION = re.compile(r"\d+\.\d+\.\d+")


def tfds(dataset: str, split: str = "train", data_dir: str | None = None) -> Dataset:
    """Returns a split of a data set that lies prepared under `data_dir` in the array_record format.

    Reads the feature "image" (8-bit, all of one size), and "label" where it is a class label.

    Args:
        dataset: its name in TFDS, with the config where it has one and the version where it matters: "celeb_a",
            "imagenet_resized/32x32", "mnist:3.0.1". Without a version the newest that is there is read.
        split: one of the splits that the prepared folder holds.
        data_dir: folder of prepared sets; None means $TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Raises:
        FileNotFoundError: it is not there; the message gives the command that prepares it.
        ValueError: another file format, an unknown split, no 8-bit images, or images of several sizes.
    """
    root = data_root(data_dir)
    return open_folder(_find(dataset, root), split, name=dataset, root=root)


def _find(dataset: str, root: Path) -> Path:
    """Returns the folder of the wanted version, or of the newest one there is."""
    name, _, version = dataset.partition(":")
    parent = root / name
    versions = _versions(parent)
    if version in versions:
        return parent / version
    if versions and not version:
        return parent / max(versions, key=lambda text: tuple(map(int, text.split("."))))
    if versions:
        raise FileNotFoundError(f"{parent} holds version {', '.join(versions)}, not {version}.")
    configs = [f"{name}/{child.name}" for child in sorted(parent.glob("*/")) if _versions(child)]
    if configs:
        raise ValueError(f"{name} lies in {root} in several configs; write one of {', '.join(configs)}.")
    raise FileNotFoundError(
        f"{dataset} was not found in {parent}. Prepare it once where TensorFlow is installed (pip "
        "install tensorflow tensorflow-datasets importlib_resources):\n  "
        f"{prepare_command(dataset, root)}\n"
        "then copy the folder here if that is another machine. TensorFlow is not needed to read "
        "it."
    )


def _versions(folder: Path) -> list[str]:
    """Returns the version folders in `folder`; broken-off preparations have other names."""
    return sorted(child.name for child in folder.glob("*/") if VERSION.fullmatch(child.name))
