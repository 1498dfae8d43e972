"""What every folder of images shares: which files it holds, what they have in common, and their decoding."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Int32, UInt8

from diffusion.data.dataset import Record, UnreadableImage, listing, require_readable

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
GREY_MODES = ("1", "L", "LA")
TURNED = (5, 6, 7, 8)  # values of the EXIF orientation that swap width and height
ORIENTATION = 0x0112
EXIF_PLACES = {"exif", "Raw profile type exif", "XML:com.adobe.xmp"}


@dataclass(frozen=True)
class FolderSource:
    """Images of a folder, decoded as they are read: mode "L" or "RGB", all of `shape`.

    besides: what a record holds besides the image, one row for each name.
    """

    root: Path
    names: Sequence[Path]
    besides: Mapping[str, Int32[np.ndarray, "n ..."]]
    mode: str
    shape: tuple[int, int, int]
    resize: bool

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: SupportsIndex, /) -> Record:
        i = index.__index__()
        image = self._decode(self.root / self.names[i])
        return {"image": image, **{key: rows[i] for key, rows in self.besides.items()}}

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


def folder_source(
    root: Path,
    found: Sequence[Path],
    chosen: Sequence[Path],
    besides: Mapping[str, Int32[np.ndarray, "n ..."]],
    image_size: int | None,
) -> FolderSource:
    """Returns the images `chosen`, in the mode and the shape that all images `found` have in common.

    Args:
        root: the folder that names are relative to.
        found: the images of both splits, so that these agree.
        chosen: those of one split.
        besides: further columns of the records, one row for each chosen image.
        image_size: N resizes the short side to N and crops the centre; None keeps sizes.

    Raises:
        ValueError: unreadable images (all of them are named), or several sizes without image_size.
    """
    mode, (width, height) = _scan(root, found, image_size)
    shape = (height, width, 1 if mode == "L" else 3)
    return FolderSource(root, chosen, besides, mode, shape, resize=image_size is not None)


def require_options(split: str, image_size: int | None, test_fraction: float) -> None:
    """Returns None; ValueError for an option out of range, or a test split without images."""
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size is {image_size}; expected 1 or more, or None to keep sizes.")
    if not 0 <= test_fraction < 1:
        raise ValueError(f"test_fraction is {test_fraction}; expected 0 <= test_fraction < 1.")
    if split == "test" and test_fraction == 0:
        raise ValueError(
            "split='test' of a folder is empty with test_fraction=0; keep images back with, say, "
            "--config.data.test_fraction=0.1, or give the folder of test images as its own path."
        )


def find_images(root: Path, max_depth: int | None = None) -> list[Path]:
    """Returns the images below `root`, as sorted paths relative to it, but for hidden ones.

    max_depth: folders that are deeper below `root` are not looked into; None looks everywhere.

    FileNotFoundError if there is no such folder; ValueError if it holds no images, or links lead in a circle.
    """
    found = find_files(root, SUFFIXES, max_depth)
    if not found:
        raise ValueError(f"{root} holds no images; expected files ending in {', '.join(SUFFIXES)}.")
    return found


def find_files(root: Path, suffixes: tuple[str, ...], max_depth: int | None = None) -> list[Path]:
    """Returns the files below `root` with one of the suffixes, in either case; otherwise as `find_images`."""
    if not root.exists():
        raise FileNotFoundError(f"the image folder {root} (that is {root.absolute()}) does not exist.")
    if not root.is_dir():
        raise ValueError(f"{root} is a file; expected a folder of images.")
    found = []
    for folder, subfolders, files in os.walk(root, onerror=_fail, followlinks=True):
        place = Path(folder).relative_to(root)
        is_deep = len(place.parts) == max_depth
        subfolders[:] = [name for name in subfolders if not (is_deep or name.startswith("."))]
        _require_no_circle(root, place)
        wanted = [name for name in files if name.lower().endswith(suffixes)]
        found += [place / name for name in wanted if not name.startswith(".")]
    return sorted(found)


def _require_no_circle(root: Path, place: Path) -> None:
    """Raises ValueError where a folder is one of those that it lies in, which only a link can bring about."""
    above = {(root / parent).resolve(): parent for parent in place.parents}
    if (same := above.get((root / place).resolve())) is not None:
        raise ValueError(f"{root / place} is a link to {root / same}, which it lies in; remove the link.")


def _fail(error: OSError) -> None:
    raise error


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
        has_exif = image.format != "PNG" or EXIF_PLACES & image.info.keys()  # asking a PNG without decodes it
        turned = has_exif and image.getexif().get(ORIENTATION) in TURNED
        return image.mode, image.size[::-1] if turned else image.size


def split_of(found: Sequence[Path], split: str, test_fraction: float) -> list[Path]:
    """Returns the part of `found` that belongs to `split`: "test" is the share whose names' SHA-256 comes first."""
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
