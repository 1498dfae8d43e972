"""What distances between sets of images are measured in: extractors, each a function from images to rows of numbers.

An `Extractor` says by its fingerprint what its numbers are made of. Two results may be compared where their
fingerprints are equal: a Frechet distance is a number of its features as much as of the images.

`inception` is the FID protocol's, for photographs; `guide` reads what a classifier sees that was trained here, for
images that Inception never saw, such as digits; `raw_pixels` takes images as they are; `from_function` is for your own.
"""

import functools
import hashlib
import http.client
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion import devices, torch_file
from diffusion.data.download import RemoteFile, fetch
from diffusion.data.scaling import to_unit_range
from diffusion.networks import inception as network
from diffusion.networks.network import Classifier
from diffusion.provenance import fingerprint
from diffusion.types import Params

Features = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""images uint8 [n, h, w, c] -> {"pool": [n, d], and "logits" of classes and "spatial" features where there are any}."""

INCEPTION_WEIGHTS = RemoteFile(
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    95_628_359,
)
"""TensorFlow's Inception-v3 of 2015-12-05, which FID is defined with, ported by pytorch-fid."""
LOG_SNR = 6.0
"""The level that a guide is told of, sigma / alpha = 0.05: nearly clean, and a level of every schedule."""


@dataclass(frozen=True)
class Extractor:
    """Features of images.

    name:        what it is called in results.
    fingerprint: all that its numbers depend on: weights by their hash, preprocessing; plain values, for JSON.
    of:          the features of images, not yet checked.
    """

    name: str
    fingerprint: Mapping[str, Any]
    of: Features = field(repr=False)

    def extract(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The features of images, by name, float32 on the host, one row for each image.

        images: bytes, 0..255, as `data.scaling.to_uint8` makes them of samples: what a picture file can hold. A set
            with fewer values is stretched by to_uint8(to_unit_range(image, num_values)).

        ValueError for images of another kind, and for features that are not finite, or not one row an image.
        """
        if images.ndim != 4 or images.dtype != np.uint8 or not len(images):
            raise ValueError(
                f"got images of shape {images.shape}, type {images.dtype}; expected uint8 [n, h, w, c], n at least 1: "
                "diffusion.data.scaling.to_uint8 makes them of images in [-1, 1]."
            )
        found = {name: np.asarray(rows, np.float32) for name, rows in self.of(images).items()}
        for name, rows in found.items():
            if rows.ndim != 2 or len(rows) != len(images):
                raise ValueError(f"{self.name} gave {name} of shape {rows.shape} for {len(images)} images.")
            if not np.isfinite(rows).all():
                raise ValueError(f"{self.name} gave {name} with values that are not finite; are its weights damaged?")
        return found


def inception(weights: str | None = None, own_weights: bool = False, batch_size: int = 64) -> Extractor:
    """Inception-v3 as in pytorch-fid 0.3.0: FID's features, the Inception Score's logits and sFID's pixels.

    weights:     the published file (`INCEPTION_WEIGHTS`), or an address to download it from; by default it lies where
                 pytorch-fid keeps it.
    own_weights: take a file with another hash, by its path; its results compare with no published ones.
    batch_size:  images at a time over all devices; fewer are filled up.

    FileNotFoundError where it is missing, which says how to get it; ValueError where it is another one.

    Compare with numbers of pytorch-fid, and with reference files that it made. TensorFlow's graph, which ADM's files
    are made with, resizes otherwise (`networks.inception.apply`): take the images again instead of the files.
    """
    if own_weights and weights is not None and "://" in weights:
        raise ValueError(
            f"got own_weights=True and the address {weights}, from which only the published file is downloaded. "
            "Download yours, and give its path."
        )
    path = _located(weights)
    with path.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    if sha256 != INCEPTION_WEIGHTS.sha256 and not own_weights:
        raise ValueError(
            f"{path} is not the published {INCEPTION_WEIGHTS.name}:\n"
            f"  got      sha256 {sha256}\n"
            f"  expected sha256 {INCEPTION_WEIGHTS.sha256}\n"
            f"Fetch {INCEPTION_WEIGHTS.url} again; for weights of your own write own_weights=True."
        )
    params = network.from_torch_state(torch_file.read(path))
    fingerprint = {
        "weights": sha256,
        "preprocessing": "bytes / 255, bilinear to 299x299 (align_corners=False, no antialiasing), 2 x - 1",
        "logits": "without bias",
    }
    name = "inception" if sha256 == INCEPTION_WEIGHTS.sha256 else "own_inception"  # FID is a number of the published
    return Extractor(name, fingerprint, _batched(network.apply, params, batch_size))


def raw_pixels() -> Extractor:
    """The pixels themselves in [-1, 1], [n, h w c]: for small images, and to compare with."""

    def of(images: np.ndarray) -> dict[str, np.ndarray]:
        return {"pool": to_unit_range(images).reshape(len(images), -1)}

    return Extractor("raw_pixels", {"preprocessing": "2 bytes / 255 - 1"}, of)


def guide(weights: str, load_guide: Any, batch_size: int = 256) -> Extractor:
    """The last hidden layer, and the logits, of a classifier that was trained here, on images without noise.

    weights:    its workdir, such as that of configs/features_digits.py.
    load_guide: `build.load_guide`: folder -> Guide.
    batch_size: images at a time over all devices; fewer are filled up.

    It is told of a level with little noise (log-SNR 6). ValueError for a guide that is no classifier, and for
    images of another shape than its own.
    """
    trained = load_guide(weights)
    if not isinstance(trained.network, Classifier):
        raise ValueError(f"{weights} holds a guide that reads captions, expected a classifier of images.")
    read, param, shape = trained.network.read, trained.param, tuple(trained.facts.shape)
    level = trained.schedule.level(trained.schedule.time_at(np.asarray(LOG_SNR)))

    def apply(params: Params, images: Any) -> dict[str, Any]:
        x_t = level.alpha * (images.astype(np.float32) / 127.5 - 1)
        logits, hidden = param.ask(read, params, x_t, level, cond={})
        return {"pool": hidden, "logits": logits}

    read_all = _batched(apply, trained.params, batch_size)

    def of(images: np.ndarray) -> Mapping[str, np.ndarray]:
        if images.shape[1:] != shape:
            raise ValueError(f"got images of shape {images.shape[1:]}, but {weights} was trained on {shape}.")
        return read_all(images)

    facts = {
        "weights": fingerprint(trained.params),
        "preprocessing": "2 bytes / 255 - 1",
        "log_snr": float(level.log_snr),
    }
    return Extractor("guide", facts, of)


def from_function(
    name: str, function: Callable[[np.ndarray], Any], fingerprint: Mapping[str, Any] = {}, batch_size: int = 64
) -> Extractor:
    """A function of your own: images uint8 [m, h, w, c] -> features [m, d], or a dict with "pool" and perhaps others.

    name, fingerprint: what results are known by. Two functions for which both are the same are taken for one: put
        a version into them, or the hash of weights.
    batch_size: it is called with so many images or fewer; where it computes is its own affair.
    """
    _check_batch_size(batch_size)

    def of(images: np.ndarray) -> dict[str, np.ndarray]:
        found = [function(images[i : i + batch_size]) for i in range(0, len(images), batch_size)]
        return _joined([rows if isinstance(rows, Mapping) else {"pool": rows} for rows in found])

    return Extractor(name, dict(fingerprint), of)


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"got batch_size={batch_size}, expected at least 1.")


def _batched(apply: Callable[..., Any], params: Params, batch_size: int) -> Features:
    """apply(params, images) of any number of images, over all devices; compiled once for a size of image."""
    _check_batch_size(batch_size)

    @jax.jit
    def compiled(params: Params, images: Any) -> Any:
        with jax.default_matmul_precision("float32"):  # a GPU or TPU would take fewer digits, and no hash would say so
            return apply(params, images)

    @functools.cache  # when it is first asked, not when it is made, so that a command may still choose its devices
    def placed() -> Any:
        mesh = devices.data_mesh()
        return mesh, devices.put(params, devices.replicated(mesh))

    def of(images: np.ndarray) -> dict[str, np.ndarray]:
        mesh, weights = placed()
        batches = []
        for rows in devices.row_batches(len(images), batch_size, mesh, whole=True):
            found = compiled(weights, devices.put(images[rows], devices.split(mesh)))
            batches.append(jax.tree.map(devices.fetch, found))
        return {name: rows[: len(images)] for name, rows in _joined(batches).items()}

    return of


def _joined(batches: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([np.asarray(batch[name]) for batch in batches]) for name in batches[0]}


def _located(weights: str | None) -> Path:
    """Where Inception's weights lie, downloaded if an address is given."""
    cache = Path(os.environ.get("TORCH_HOME", "~/.cache/torch")).expanduser() / "hub" / "checkpoints"
    file, path = INCEPTION_WEIGHTS, cache / INCEPTION_WEIGHTS.name
    if weights is not None and "://" in weights:
        if not path.exists():
            try:
                fetch(replace(file, url=weights), path)
            except (OSError, http.client.HTTPException) as error:
                raise FileNotFoundError(f"{weights} could not be downloaded: {error}.\n{_how_to_get(path)}") from error
        return path
    path = path if weights is None else Path(weights).expanduser()
    path = path / file.name if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"Inception's weights are not at {path}.\n{_how_to_get(cache / file.name)}")
    return path


def _how_to_get(path: Path) -> str:
    file = INCEPTION_WEIGHTS
    return (
        f"Fetch\n  {file.url}\n({file.num_bytes / 1e6:.0f} MB, sha256 {file.sha256[:8]}...) and put it at\n  {path}\n"
        "or give its path, or its address to have it downloaded: --weights= (in Python, inception(weights))."
    )
