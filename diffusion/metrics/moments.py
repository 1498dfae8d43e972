"""Mean and covariance of features: gathered in one pass, merged, kept in files of the public layout.

    gathered = Moments()
    for batch in batches:
        gathered = gathered.update(batch)                     # [any number of rows, d]
    write("reference.npz", {"pool": gathered.statistics()}, {"data": "cifar10", "weights": "sha256 ..."})

Everything is float64 on the host. Rows are folded in blocks of a fixed size whatever the batches were, so a pass that
was killed and resumed, or cut into other batches, gives the same bits.
"""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from diffusion import workdir
from diffusion.metrics.metric import Rows, check_rows

BLOCK = 1024  # rows folded at once: a product of matrices large enough to be fast, 16 MB at d = 2048
ARRAYS = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
"""Names of the arrays in a file: those of the public FID reference files; the spatial ones are ADM's."""


class Statistics(NamedTuple):
    """Mean [d] and covariance [d, d] of features, float64, and from how many rows they were taken.

    num_rows is None where a public file does not say.
    """

    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]
    num_rows: int | None


def statistics(features: Rows) -> Statistics:
    """The Statistics of feature rows; the covariance divides by n - 1. At least two rows are needed."""
    return Moments().update(features).statistics()


class Moments(NamedTuple):
    """The sums that mean and covariance follow from; it starts empty, each method returns another one.

    num_rows:  how many rows are folded into mean and scatter; those in `rest` come on top.
    mean:      their mean, [d].
    scatter:   the sum over them of (x - mean)(x - mean)^T, [d, d].
    rest:      rows that wait until a block is full, [m < BLOCK, d].

    The mean moves with the data (Chan, Golub & LeVeque 1983). The sum of x x^T less n mean mean^T would lose
    as many digits as (mean / deviation)^2 has.
    All four are plain arrays, so that `np.savez(file, **moments._asdict())` keeps a pass that is under way.
    """

    num_rows: int = 0
    mean: np.ndarray = np.zeros(0)
    scatter: np.ndarray = np.zeros((0, 0))
    rest: np.ndarray = np.zeros((0, 0))

    @property
    def width(self) -> int:
        """d, or 0 before the first row."""
        return max(len(self.mean), self.rest.shape[1])

    def update(self, features: Rows) -> "Moments":
        """With more rows. ValueError for rows of another width or values that are not finite."""
        rows = check_rows("features", np.asarray(features, np.float64), 0, "")
        self._check_width(rows.shape[1])
        if len(self.rest):
            rows = np.concatenate([self.rest, rows])
        moments, whole = self, len(rows) - len(rows) % BLOCK
        for start in range(0, whole, BLOCK):
            moments = moments._folded(_of(rows[start : start + BLOCK]))
        return moments._replace(rest=rows[whole:].copy())

    def merge(self, other: "Moments") -> "Moments":
        """Of the rows of both: what two halves of a set give together, up to rounding."""
        if not other.width:
            return self
        self._check_width(other.width)
        return self._folded(other).update(other.rest)

    def statistics(self) -> Statistics:
        """Mean and covariance of all rows; the covariance divides by n - 1. ValueError for fewer than two rows."""
        whole = self._folded(_of(self.rest)) if len(self.rest) else self
        if whole.num_rows < 2:
            raise ValueError(f"got {whole.num_rows} rows of features, expected at least 2: a covariance needs them.")
        return Statistics(whole.mean, whole.scatter / (whole.num_rows - 1), int(whole.num_rows))

    def _check_width(self, width: int) -> None:
        if self.width not in (0, width):
            raise ValueError(f"got rows of {width} features after rows of {self.width}; expected the same features.")

    def _folded(self, other: "Moments") -> "Moments":
        """With the other's mean and scatter, whatever its rest."""
        if not self.num_rows or not other.num_rows:
            given = self if self.num_rows else other
            return Moments(given.num_rows, given.mean, given.scatter, self.rest)
        total = self.num_rows + other.num_rows
        away = other.mean - self.mean
        mean = self.mean + away * (other.num_rows / total)
        between = np.outer(away, away * (self.num_rows * other.num_rows / total))
        return Moments(total, mean, self.scatter + other.scatter + between, self.rest)


def _of(rows: np.ndarray) -> Moments:
    """The moments of one block, by two passes over it."""
    mean = rows.mean(0)
    away = rows - mean[None]
    return Moments(len(rows), mean, away.T @ away, rows[:0])


def write(
    file: str | Path,
    sets: Mapping[str, Statistics],
    facts: Mapping[str, Any],
    besides: Mapping[str, np.ndarray] = {},
) -> None:
    """Writes statistics by what was read ("pool", "spatial") and facts about them, atomically, as one .npz.

    The arrays mu and sigma (mu_s and sigma_s) are what other codebases expect; ours besides them are the number of
    rows `n` and `facts`, anything that JSON holds (data fingerprint, preprocessing, hash of the weights), and arrays
    besides, which others pass over.
    """
    arrays: dict[str, Any] = {"facts": json.dumps(dict(facts), sort_keys=True), **besides}
    for reads, (mean, covariance, num_rows) in sets.items():
        if reads not in ARRAYS:
            raise ValueError(f"got statistics of {reads!r}, expected those of {' or '.join(map(repr, ARRAYS))}.")
        names = ARRAYS[reads]
        arrays |= {names[0]: mean, names[1]: covariance}
        arrays |= {} if num_rows is None else {names[0].replace("mu", "n"): num_rows}
    workdir.write_arrays(file, arrays)


def read(file: str | Path) -> tuple[dict[str, Statistics], dict[str, Any]]:
    """The statistics of a file by what was read, and its facts ({} for a file from elsewhere).

    ValueError for a file without mu and sigma, whose arrays do not fit together, or that is no .npz archive.
    """
    with open(file, "rb") as start:
        if not zipfile.is_zipfile(start):
            raise ValueError(
                f"{file} is no .npz archive, expected one with the arrays mu [d] and sigma [d, d]. A pickle is not "
                "read, since it may run anything: load one that you trust, and np.savez its mu and sigma."
            )
    with np.load(file) as content:
        arrays = {name: content[name] for names in ARRAYS.values() for name in names if name in content}
        counts = {name: int(content[name]) for name in ("n", "n_s") if name in content}
        facts = json.loads(str(content["facts"])) if "facts" in content else {}
        held = sorted(content)
    found = {}
    for reads, (mean, covariance) in ARRAYS.items():
        if mean in arrays and covariance in arrays:
            _check(file, mean, arrays[mean], covariance, arrays[covariance])
            first, second = (np.asarray(arrays[name], np.float64) for name in (mean, covariance))
            found[reads] = Statistics(first, second, counts.get(mean.replace("mu", "n")))
    if not found:
        raise ValueError(
            f"{file} holds {', '.join(held) or 'nothing'}, expected the arrays mu [d] and sigma [d, d] of a reference "
            "file for FID. Make one of a data set by `python main.py --mode=ref_stats`."
        )
    return found, facts


def _check(file: str | Path, mean_name: str, mean: np.ndarray, name: str, covariance: np.ndarray) -> None:
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"{file} holds {mean_name} of shape {mean.shape} and {name} of shape {covariance.shape}, "
            "expected [d] and [d, d]."
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"{file} holds values that are not finite in {mean_name} or {name}; make or fetch it anew.")
    if not np.allclose(covariance, covariance.T, rtol=1e-4, atol=1e-6 * np.abs(covariance).max()):
        raise ValueError(f"{file} holds a {name} that is not symmetric, so it is no covariance; make or fetch it anew.")
