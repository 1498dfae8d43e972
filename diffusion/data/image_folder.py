"""A folder of images, of any size and with or without classes."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import UInt8

from diffusion.data.dataset import (
    Dataset,
    Record,
    UnreadableImage,
    decode_into_memory,
    listing,
    require_readable,
    require_split,
)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
GREY_MODES = ("1", "L", "LA")
TURNED = (5, 6, 7, 8)  # values of the EXIF orientation that swap width and height
ORIENTATION = 0x0112
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
    _require_options(split, image_size, test_fraction)
    root = Path(path).expanduser()
    found = _find_images(root)
    class_names = _class_names(root, found)
    mode, size = _scan(root, found, image_size)
    chosen = _split(found, split, test_fraction)
    label_of = {class_name: label for label, class_name in enumerate(class_names)}
    labels = [label_of[name.parent.name] for name in chosen] if class_names else []
    shape = (size[1], size[0], 1 if mode == "L" else 3)
    source = FolderSource(root, chosen, labels, mode, shape, resize=image_size is not None)
    return Dataset(decode_into_memory(source, shape), shape, class_names=class_names)


@dataclass(frozen=True)
class FolderSource:
    """Images of a folder, decoded as they are read: mode "L" or "RGB", all of `shape`."""

    root: Path
    names: Sequence[Path]
    labels: Sequence[int]
    mode: str
    shape: tuple[int, int, int]
    resize: bool

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: SupportsIndex, /) -> Record:
        i = index.__index__()
        image = self._decode(self.root / self.names[i])
        return {"image": image} | ({"label": np.int32(self.labels[i])} if self.labels else {})

    def _decode(self, path: Path) -> UInt8[np.ndarray, "h w c"]:
        from PIL import Image, ImageOps

        height, width, _ = self.shape
        with _opened(path) as stored:
            image = ImageOps.exif_transpose(stored).convert(self.mode)
            if self.resize:
                image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
            if image.size != (width, height):
                raise ValueError("is {}x{} once turned upright, not {}x{}".format(*image.size, width, height))
            return np.asarray(image).reshape(self.shape)


def _require_options(split: str, image_size: int | None, test_fraction: float) -> None:
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size is {image_size}; expected 1 or more, or None to keep sizes.")
    if not 0 <= test_fraction < 1:
        raise ValueError(f"test_fraction is {test_fraction}; expected 0 <= test_fraction < 1.")
    if split == "test" and test_fraction == 0:
        raise ValueError(
            "split='test' of a folder is empty with test_fraction=0; keep images back with, say, "
            "--config.data.test_fraction=0.1, or give the folder of test images as its own path."
        )


def _find_images(root: Path) -> list[Path]:
    """Returns the images below `root`, as sorted paths relative to it."""
    if not root.exists():
        raise FileNotFoundError(f"the image folder {root} (that is {root.absolute()}) does not exist.")
    if not root.is_dir():
        raise ValueError(f"{root} is a file; expected a folder of images.")
    found = []
    for folder, subfolders, files in os.walk(root, onerror=_fail, followlinks=True):
        place = Path(folder).relative_to(root)
        is_deep = len(place.parts) == 2  # no place for images, so looking further down is no use
        subfolders[:] = [name for name in subfolders if not (is_deep or name.startswith("."))]
        images = [name for name in files if name.lower().endswith(SUFFIXES)]
        found += [place / name for name in images if not name.startswith(".")]
    if not found:
        raise ValueError(f"{root} holds no images; expected files ending in {', '.join(SUFFIXES)}.")
    return sorted(found)


def _fail(error: OSError) -> None:
    raise error


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


def _scan(root: Path, found: Sequence[Path], image_size: int | None) -> tuple[str, tuple[int, int]]:
    """Returns the common mode ("L" or "RGB") and the common (width, height), from the headers."""
    modes = set()
    by_size: dict[tuple[int, int], list[Path]] = defaultdict(list)
    problems = []
    for name in found:
        try:
            image_mode, size = _header(root / name)
        except UnreadableImage as problem:
            problems.append(str(problem))
        else:
            modes.add(image_mode)
            by_size[size].append(name)
    require_readable(problems, len(found))
    mode = "L" if modes <= set(GREY_MODES) else "RGB"
    if image_size is not None:
        return mode, (image_size, image_size)
    if len(by_size) > 1:
        common_first = sorted(by_size.items(), key=lambda item: -len(item[1]))
        raise ValueError(
            f"{root} holds images of {len(by_size)} sizes (width x height):\n"
            + listing([f"{w}x{h}: {len(names)}, such as {names[0]}" for (w, h), names in common_first])
            + "Pass image_size=N to resize the short side to N and crop the centre."
        )
    return mode, next(iter(by_size))


def _header(path: Path) -> tuple[str, tuple[int, int]]:
    """Returns an image's mode and its (width, height) once turned upright."""
    with _opened(path) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"mode {image.mode} has more than 8 bits a value; save it with 8")
        has_exif = image.format != "PNG" or "exif" in image.info  # asking a PNG without decodes it
        turned = has_exif and image.getexif().get(ORIENTATION) in TURNED
        return image.mode, image.size[::-1] if turned else image.size


def _split(found: Sequence[Path], split: str, test_fraction: float) -> list[Path]:
    """Returns the part of `found` that belongs to `split`."""
    num_test = round(len(found) * test_fraction)
    if test_fraction and not 0 < num_test < len(found):
        raise ValueError(
            f"test_fraction={test_fraction} of {len(found)} images is {num_test}, which leaves a "
            "split empty; keep at least one image for each."
        )
    by_hash = sorted(found, key=lambda name: hashlib.sha256(name.as_posix().encode()).digest())
    return sorted(by_hash[:num_test] if split == "test" else by_hash[num_test:])


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Yields the opened image; whatever Pillow finds wrong with it becomes an UnreadableImage."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            yield image
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"{path}: {error}") from error
