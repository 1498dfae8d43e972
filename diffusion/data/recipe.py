"""Preparing a published data set into the official TFDS layout, with no TensorFlow.

TFDS's own builders unpack, read and encode through TensorFlow. None of that is needed: a builder
that is handed decoded images writes the same records, and since it uses the same keys, TFDS's
shuffle by hash puts them into the same order. What lies on disk afterwards is what
`tfds.data_source(name)` expects to find.

A data set states only what is its own, as a `Recipe`; all the rest is here.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.data.dataset import Dataset, require_split
from diffusion.data.download import RemoteFile, locate
from diffusion.data.prepared import data_root, open_folder

SPLITS = ("train", "test")
Examples = Iterator[tuple[np.ndarray, int]]


@dataclass(frozen=True)
class Recipe:
    """What sets one published data set apart.

    Attributes:
        name: its name in TFDS.
        version: its version in TFDS; the layout is only read back under the same one.
        shape: (h, w, c).
        class_names: the name of label 0, 1, ...
        files: what is downloaded.
        examples: (path of each file by name, split) -> (uint8 image [h, w, c], label) in the published order.
        has_ids: whether TFDS stores the text "train_00042" with each image.
    """

    name: str
    version: str
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    files: tuple[RemoteFile, ...]
    examples: Callable[[Mapping[str, Path], str], Examples]
    has_ids: bool = False


def load(recipe: Recipe, split: str, data_dir: str | None, archive: str | None) -> Dataset:
    """Returns a split of the data set, prepared first if it is not yet.

    Args:
        recipe: which data set.
        split: "train" or "test".
        data_dir: folder of prepared sets; None means $TFDS_DATA_DIR, else ~/tensorflow_datasets.
        archive: where the published files lie; None downloads them. Not looked at once the set is prepared.

    Raises:
        ValueError: unknown split, or what `prepare` and `open_folder` raise.
        FileNotFoundError: a published file is missing and cannot be downloaded.
    """
    require_split(split, SPLITS, recipe.name)
    root = data_root(data_dir)
    folder = root / recipe.name / recipe.version
    if not folder.exists():
        prepare(recipe, root, archive)
    return open_folder(folder, split, name=recipe.name, root=root)


def prepare(recipe: Recipe, root: Path, archive: str | None) -> None:
    """Returns None once `<root>/<name>/<version>` holds the whole data set in the array_record
    format.

    The folder appears under this name in one rename at the very end; a crash leaves only
    `incomplete.*` beside it. Two processes may prepare the same set at once: the first to finish
    wins.

    Args:
        recipe: which data set.
        root: folder of prepared sets, made if it does not exist.
        archive: where the published files lie; None downloads them.

    Raises:
        ValueError: `root` cannot be written or is too full, or a file is not the published one.
        FileNotFoundError: a published file is missing and cannot be downloaded.
    """
    _require_space(root, 3 * sum(file.num_bytes for file in recipe.files))
    paths = locate(recipe.files, archive, root / "downloads" / recipe.name)
    builder = _builder(recipe, paths, root)
    folder = Path(builder.data_dir)
    try:
        builder.download_and_prepare()
    except OSError:
        if not folder.exists():  # else another process was faster
            raise


def _builder(recipe: Recipe, paths: Mapping[str, Path], root: Path) -> Any:
    """Returns a TFDS builder that writes the examples of `recipe`."""
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():  # TFDS has a builder of this name already

        class Writer(tfds.core.GeneratorBasedBuilder):
            name = recipe.name
            VERSION = tfds.core.Version(recipe.version)

            def _info(self) -> Any:
                features = {
                    "image": tfds.features.Image(shape=recipe.shape),
                    "label": tfds.features.ClassLabel(names=recipe.class_names),
                }
                if recipe.has_ids:
                    features["id"] = tfds.features.Text()
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager: Any) -> Any:
                return {split: self._generate_examples(split) for split in SPLITS}

            def _generate_examples(self, split: str) -> Any:
                return _records(recipe, paths, split)

    return Writer(data_dir=root, file_format="array_record")


def _records(recipe: Recipe, paths: Mapping[str, Path], split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (key, record); TFDS shuffles by the key, so equal keys give TFDS's own order."""
    from PIL import Image

    for index, (image, label) in enumerate(recipe.examples(paths, split)):
        pixels = image[..., 0] if recipe.shape[-1] == 1 else image
        record = {"image": Image.fromarray(np.ascontiguousarray(pixels)), "label": label}
        yield index, record | ({"id": f"{split}_{index:05d}"} if recipe.has_ids else {})


def _require_space(root: Path, num_bytes: int) -> None:
    """Raises ValueError unless `root` can be made and has room for `num_bytes` more."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(root).free
    except OSError as error:
        raise ValueError(
            f"data_dir {root} cannot be written ({error}); choose another with --config.data.data_dir=FOLDER."
        ) from error
    if free < num_bytes:
        raise ValueError(
            f"data_dir {root} has {free / 1e6:.0f} MB free, and preparing takes about "
            f"{num_bytes / 1e6:.0f} MB; choose another with --config.data.data_dir=FOLDER."
        )
