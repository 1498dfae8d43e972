"""What samples are compared with: a data set's statistics and features, in one file that says how they were made.

`write` makes it (`main.py --mode=ref_stats`), `read` takes it, and also the public .npz files of mu and sigma, which
do not say what they were made of.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion import workdir
from diffusion.measuring import Gathered
from diffusion.metrics import moments
from diffusion.metrics.metric import Metric
from diffusion.metrics.moments import Statistics

FILE = "reference.npz"
ROWS = "features_"
"""The array that holds the rows of features which were read from "pool" is "features_pool"."""


class Reference(NamedTuple):
    """A reference file.

    statistics: by the output of the extractor that they were taken from.
    facts: what it was made of and with ({} for a public file): "data", "split", "num_images", "images" (their
        SHA-256), "features" (the extractor's name and fingerprint).
    hash: the SHA-256 of the file.
    """

    path: Path
    statistics: Mapping[str, Statistics]
    facts: Mapping[str, Any]
    hash: str

    def of(self, metric: Metric) -> Any:
        """What this metric compares with; ValueError where the file does not hold it."""
        name = f"{ROWS}{metric.reads}"
        if metric.keeps == "statistics":
            if metric.reads in self.statistics:
                return self.statistics[metric.reads]
            raise ValueError(f"{self.path} holds no statistics of {metric.reads!r}. {HOW_TO_MAKE}")
        with np.load(self.path) as content:
            if name in content:
                return content[name]
        raise ValueError(f"{self.path} holds statistics alone, and a metric asks for rows of features. {HOW_TO_MAKE}")

    def check_made_with(self, features: Mapping[str, Any]) -> None:
        """ValueError where it was made with another extractor, or other weights. features: name and fingerprint."""
        there = self.facts.get("features")
        if there is None:
            if features["name"] != "inception":
                raise ValueError(f"{self.path} does not say what it was made with; expected features=inception.")
            return
        differ = sorted(k for k in there.keys() | features.keys() if there.get(k) != features.get(k))
        if differ:
            lines = "".join(f"\n  {k}: {there.get(k)} there, {features.get(k)} here" for k in differ)
            raise ValueError(
                f"{self.path} was made with other features:{lines}\nMeasure with the same, or make it anew."
            )

    def described(self) -> dict[str, Any]:
        """What a result says of it: which file, and what that was made of, where it says so."""
        known = ("data", "split", "num_images", "images")
        return {"sha256": self.hash, **{name: self.facts[name] for name in known if name in self.facts}}


def read(path: str | Path) -> Reference:
    """The reference in a file, or in the folder that `--mode=ref_stats` wrote; errors say how to make one."""
    path = Path(path).expanduser()
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"there is no reference at {path}. {HOW_TO_MAKE}")
    try:
        statistics, facts = moments.read(path)
    except workdir.DAMAGED_ARRAYS as error:
        raise ValueError(f"{path} is no reference: {error}") from error
    with path.open("rb") as content:
        return Reference(path, statistics, facts, hashlib.file_digest(content, "sha256").hexdigest())


def made_with(reference: Reference | None) -> dict[str, str | None]:
    """The extractor of a reference by name, and where its weights lay; Inception where nothing is said."""
    if reference is None or "features" not in reference.facts:
        return {"name": "inception", "weights": None}
    beside = reference.path.with_suffix(".json")
    weights = json.loads(beside.read_text()).get("weights") if beside.exists() else None
    return {"name": reference.facts["features"]["name"], "weights": weights}


def write(path: Path, gathered: Gathered, facts: Mapping[str, Any]) -> None:
    """Writes a reference atomically; facts: plain values, for JSON."""
    rows = {f"{ROWS}{reads}": features for reads, features in gathered.features.items()}
    moments.write(path, gathered.statistics, facts, rows)


HOW_TO_MAKE = "Make one: python main.py --mode=ref_stats --config=configs/ddpm_cifar10.py --workdir=refs/cifar10"
