"""A folder of images, of any size and with or without classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffusion.data.dataset import Dataset, decode_into_memory, require_split
from diffusion.data.folder import find_images, folder_source, require_options, split_of

SPLIT_NAMES = {"train", "training", "test", "testing", "val", "valid", "validation"}


def image_folder(path: str, split: str = "train", image_size: int | None = None, test_fraction: float = 0.0) -> Dataset:
    """Returns the images under `path`, 256 values, in the sorted order of their names.

    Images lie either in `path` itself (an unlabelled set) or in its direct subfolders (one class
    each, labels in the sorted order of the folder names). Hidden files and files that do not end in
    one of SUFFIXES are passed over. The set is greyscale (c = 1) if every image is, else RGB;
    transparency is dropped, and photographs are turned as their EXIF orientation says.

    Sets that fit into memory are decoded at once. Of larger ones only the headers are read at the
    start; pixels that turn out damaged later are reported, with the file's name, when they are
    read.

    Args:
        path: the folder.
        split: "train" or "test".
        image_size: N resizes the short side to N and crops the centre, giving NxN; None keeps the images as
            they are, and then all must have one size, square or not.
        test_fraction: share of the images kept for "test", in [0, 1). Which ones depends on nothing but their
            names (those whose SHA-256 comes first).

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: no images, unreadable images (all of them are named), several sizes without image_size,
            images both in `path` and in subfolders, or an empty split.
    """
    require_split(split, ("train", "test"), "image_folder")
    require_options(split, image_size, test_fraction)
    root = Path(path).expanduser()
    found = find_images(root, max_depth=2)  # one more than images may have, to name those that lie too deep
    class_names = _class_names(root, found)
    chosen = split_of(found, split, test_fraction)
    label_of = {class_name: label for label, class_name in enumerate(class_names)}
    labels = {"label": np.array([label_of[name.parent.name] for name in chosen], np.int32)} if class_names else {}
    source = folder_source(root, found, chosen, labels, image_size)
    return Dataset(decode_into_memory(source, source.shape), source.shape, class_names=class_names)


def _class_names(root: Path, found: Sequence[Path]) -> tuple[str, ...]:
    """Returns the sorted class folders, () where the images lie in `root` itself."""
    by_depth = {len(name.parts): name for name in found}
    if max(by_depth) > 2:
        raise ValueError(
            f"{root / by_depth[max(by_depth)]} lies too deep; expected images in {root} itself, or "
            "in its direct subfolders (one for each class)."
        )
    if len(by_depth) == 2:
        raise ValueError(
            f"images lie both in {root} ({by_depth[1]}) and in its subfolders ({by_depth[2]}). "
            f"Move all into subfolders, one for each class, or all into {root}, without classes."
        )
    classes = {name.parent.name for name in found if len(name.parts) == 2}
    if classes and classes <= SPLIT_NAMES:
        raise ValueError(
            f"the subfolders of {root} ({', '.join(sorted(classes))}) are named like splits, not "
            f"like classes; give one of them as the path, such as {root / min(classes)}."
        )
    return tuple(sorted(classes))
