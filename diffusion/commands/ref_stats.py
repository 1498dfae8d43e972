"""The reference of a data set: statistics and features of its images, which samples are compared with."""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion import build, measuring, references, workdir
from diffusion.commands.console import bar, refusing, say
from diffusion.commands.measured import described, make_extractor
from diffusion.config import BESIDES_OPTIONS, PLACES_OF_DATA, to_json
from diffusion.data import pipeline
from diffusion.data.dataset import Dataset
from diffusion.data.scaling import to_uint8
from diffusion.features import Extractor
from diffusion.provenance import provenance

AT_ONCE = 1024
"""Images in memory; each extractor cuts them into its own batches."""
SUMMED = ("pool", "spatial")
"""The features that are summed up, where an extractor gives them."""


def ref_stats(
    config: ConfigDict,
    folder: str | Path,
    *,
    split: str = "train",
    features: str | Extractor = "inception",
    weights: str | None = None,
    max_features: int = 50_000,
) -> Path:
    """Sums up the config's data set, for --mode=evaluate to compare with; the path of <folder>/reference.npz.

    It holds mu and sigma (and mu_s, sigma_s for sFID), as other codebases read them, rows of pooled features for the
    metrics that need them, and what it was made of; reference.json says that in words, with versions and command.

    config:     any one; only its data block counts, without flips and augmentation.
    features, weights: the extractor, see `diffusion.features`, and where its weights lie.
    max_features: rows to keep, evenly spread over a larger set; 0 keeps statistics alone.
    The same call again reads the images, finds the reference there and leaves it. Refused: before anything is spent.
    """
    folder = Path(folder).expanduser()
    file = folder / references.FILE
    with refusing():
        if max_features < 0:
            raise ValueError(f"got max_features={max_features}, expected 0 (statistics alone) or more.")
        dataset = build.open_dataset(config, split)
        extractor = make_extractor(features, weights)
        given = measuring.check(extractor, [], dataset.shape)
        workdir.check_writable(folder)
        facts = _facts(config, dataset, split, extractor, max_features)
        if file.exists():
            _check_same(file, facts)
            say(f"made before: {file}")
            return file
        folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    kept: dict[str, Any] = {"features": ("pool",), "every": -(-len(dataset) // max_features)} if max_features else {}
    summed = [name for name in SUMMED if name in given]
    gathered = measuring.gather(_images(dataset, progress=True), extractor, statistics=summed, **kept)
    if jax.process_index() == 0:
        seconds = time.perf_counter() - start
        where = weights if weights is None or "://" in weights else str(Path(weights).expanduser().resolve())
        workdir.write(folder, "reference.json", {**facts, "weights": where, "seconds": seconds, **provenance()})
        references.write(file, gathered, facts)  # last: while it is missing, the same command makes both
        say(f"{len(dataset)} {split} images of {config.data.name} in {seconds:.1f} s: {file}")
    return file


def _facts(config: ConfigDict, dataset: Dataset, split: str, extractor: Extractor, max_features: int) -> dict[str, Any]:
    """Everything that decides the reference's numbers."""
    besides = (*PLACES_OF_DATA, *BESIDES_OPTIONS["data"])
    return {
        "data": {key: value for key, value in to_json(config)["data"].items() if key not in besides},
        "split": split,
        "num_images": len(dataset),
        "shape": list(dataset.shape),
        "num_values": dataset.num_values,
        "images": _sha256(dataset),
        "features": described(extractor),
        "max_features": max_features,
    }


def _sha256(dataset: Dataset) -> str:
    """Of all images as bytes, in the set's order."""
    digest = hashlib.sha256()
    for images in _images(dataset):
        digest.update(images.tobytes())
    return digest.hexdigest()


def _images(dataset: Dataset, progress: bool = False) -> Iterator[np.ndarray]:
    """The set's images as bytes, 0..255, a part after the other."""
    parts = np.split(np.arange(len(dataset)), range(AT_ONCE, len(dataset), AT_ONCE))
    for rows in bar(parts, len(dataset), shown=progress):
        yield to_uint8(pipeline.gather(dataset, rows)["image"])


def _check_same(file: Path, facts: dict[str, Any]) -> None:
    there = references.read(file).facts
    differ = [f"  {key}: {there.get(key)} there, {facts[key]} now" for key in facts if there.get(key) != facts[key]]
    if differ:
        raise ValueError(
            f"{file} is a reference of something else:\n"
            + "\n".join(differ)
            + "\nChoose another --workdir, or delete it."
        )
