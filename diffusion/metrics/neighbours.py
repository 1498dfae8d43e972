"""Balls around samples that reach to the k-th neighbour, and which samples lie in which ball.

A squared distance in float32 is off by up to `_slack` of |x|^2 + |y|^2, so tiles on the devices give two answers, one
for distances that are surely not too short and one for those that are not too long. Where both agree, float64 would say
the same; the few rows where they differ are done again on the host in float64. So every decision is float64's, ties
included: a copy of the k-th neighbour lies on the ball's edge, and so inside.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Num

from diffusion import devices
from diffusion.metrics import pairs

SPARE = 8  # neighbours found beyond the k-th: room for float32 to rank them wrongly
ROWS, COLUMNS = 1024, 4096  # of a tile on the host: 34 MB in float64


class _Points(NamedTuple):
    """What tiles are made of, float32: rows, and |row|^2 less and more the slack; which are real; ids; radii."""

    rows: Any
    low: Any
    high: Any
    real: Any
    id: Any
    squared_radius: Any


def squared_radii(features: Num[np.ndarray, "n d"], k: int, *, progress: bool = False) -> Float[np.ndarray, " n"]:
    """The squared distance of each row to its k-th nearest other row, float64 (copies of a row count, it does not)."""
    most = min(len(features) - 1, pairs.CHUNK - SPARE)
    if not 1 <= k <= most:
        raise ValueError(f"got k={k} for {len(features)} rows, expected 1 <= k <= {most}.")
    frame = _Frame(features)
    points, count = frame.points(features), k + SPARE
    lowest, ids = np.empty((len(features), 0), np.float32), np.empty((len(features), 0), np.int32)
    per_tile = min(count, pairs.CHUNK, len(features))
    reduce = functools.partial(_nearest, count=per_tile, mesh=devices.data_mesh())
    for _, found in pairs.tiles(reduce, points, points, progress=progress, label="neighbours"):
        lowest, ids = (np.append(a, b[: len(features)], axis=1) for a, b in zip((lowest, ids), found, strict=True))
        if lowest.shape[1] > count:
            keep = np.argpartition(lowest, count - 1, axis=1)[:, :count]
            lowest, ids = np.take_along_axis(lowest, keep, 1), np.take_along_axis(ids, keep, 1)
    squared = _kth_of(features, np.arange(len(features)), np.where(np.isfinite(lowest), ids, -1), k)
    # all that were not found are at least as far as the last bound; where that is within the radius, look again
    unsure = np.flatnonzero(np.maximum(lowest.max(1).astype(np.float64), 0) * frame.scale**2 < squared)
    for part in _parts(unsure, ROWS):
        candidates, bound = frame.nearest(features, part, count)
        squared[part] = _kth_of(features, part, candidates, k)
        for row in part[np.maximum(bound, 0) < squared[part]]:  # beside an outlier, 1e8 times as far, or among ties
            squared[row] = _kth_of_all(features, int(row), k)
    return squared


def count_balls(
    points: Num[np.ndarray, "n d"],
    centres: Num[np.ndarray, "m d"],
    squared_radii: Float[np.ndarray, " m"],
    *,
    exact: bool = True,
    progress: bool = False,
) -> Int[np.ndarray, " n"]:
    """In how many balls each point lies, their edges included. With exact=False only 0 or not 0 means something."""
    return _count(points, centres, np.zeros(len(points)), squared_radii, exact=exact, progress=progress)


def count_inside(
    centres: Num[np.ndarray, "m d"],
    squared_radii: Float[np.ndarray, " m"],
    points: Num[np.ndarray, "n d"],
    *,
    exact: bool = True,
    progress: bool = False,
) -> Int[np.ndarray, " m"]:
    """How many points lie in each ball, its edge included. With exact=False only 0 or not 0 means something."""
    return _count(centres, points, squared_radii, np.zeros(len(points)), exact=exact, progress=progress)


def _count(rows: Any, columns: Any, row_radii: Any, column_radii: Any, *, exact: bool, progress: bool) -> Any:
    """For each row, to how many columns it is nearer than the sum of both squared radii, one of which is zero."""
    frame = _Frame(columns)
    points = frame.points(rows, row_radii), frame.points(columns, column_radii)
    sure, possible = np.zeros((2, len(rows)), np.int64)
    for _, (sure_, possible_) in pairs.tiles(_bounds, *points, progress=progress, label="balls"):
        sure, possible = sure + sure_[: len(rows)], possible + possible_[: len(rows)]
    unsure = np.flatnonzero(sure != possible if exact else (sure == 0) & (possible > 0))
    for part in _parts(unsure, ROWS):
        sure[part] = frame.count(rows, part, columns, row_radii[part], column_radii)
    return sure


@functools.partial(jax.jit, static_argnames=("count", "mesh"))
def _nearest(rows: _Points, columns: _Points, *, count: int, mesh: Any) -> Any:
    """Lower bounds of squared distances [n, count], the least ones of a tile, and whose they are."""
    bound = _sum(rows.low, columns.low) - 2 * pairs.dot(rows.rows, columns.rows)
    other = columns.real[None] & (rows.id[:, None] != columns.id[None])
    found, at = devices.each_part(lambda part: jax.lax.top_k(part, count), mesh)(-jnp.where(other, bound, jnp.inf))
    return -found, columns.id[at]


@jax.jit
def _bounds(rows: _Points, columns: _Points) -> Any:
    """How many columns are surely, and how many possibly, within the radius of each row, both [n]."""
    product = 2 * pairs.dot(rows.rows, columns.rows)
    radius = _sum(rows.squared_radius, columns.squared_radius)

    def within(norms: Any) -> Any:
        return ((norms - product <= radius) & columns.real[None]).sum(1)

    return within(_sum(rows.high, columns.high)), within(_sum(rows.low, columns.low))


def _sum(rows: Any, columns: Any) -> Any:
    return rows[:, None] + columns[None]


def _slack(num_features: int) -> float:
    """What share of |x|^2 + |y|^2 the rounding of |x|^2 + |y|^2 - 2 x.y can be, in float32.

    A product of d terms is off by lambda sqrt(d) 2^-24 |x| |y| at most, but for a probability of about
    exp(-lambda^2 / 2) (Higham & Mary 2019); lambda = 8 here. The 4 is for all other operations.
    """
    return 8 * np.sqrt(num_features + 4) * 2.0**-24


class _Frame:
    """Coordinates in which the rows of a set are centred and no value is above 1: float32 loses least there."""

    def __init__(self, features: np.ndarray) -> None:
        self._kind = np.result_type(features.dtype, np.float32)
        self._centre = features.mean(0, dtype=np.float64).astype(self._kind)
        self.scale = max((float(np.abs(self._centred(p)).max()) for p in _parts(features, COLUMNS)), default=1.0) or 1.0

    def _centred(self, features: np.ndarray) -> np.ndarray:
        return features.astype(self._kind) - self._centre[None]

    def points(self, features: np.ndarray, squared_radii: Any = 0.0) -> _Points:
        """The set as tiles take it; squared_radii are [n] or a number."""
        n = len(features)
        rows, norms = np.empty(features.shape, np.float32), np.empty(n)
        for start in range(0, n, COLUMNS):
            part = slice(start, start + COLUMNS)
            rows[part] = self._centred(features[part]) / self.scale
            norms[part] = (rows[part].astype(np.float64) ** 2).sum(1)
        slack = _slack(features.shape[1])
        low, high = (((1 + sign * slack) * norms).astype(np.float32) for sign in (-1, 1))
        radii = (np.broadcast_to(squared_radii, n) / self.scale**2).astype(np.float32)
        return _Points(rows, low, high, np.ones(n, bool), np.arange(n, dtype=np.int32), radii)

    def _squared(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances in float64 and how far the short way to them may be off, both [n, m]."""
        x, y = (part - self._centre[None].astype(np.float64) for part in (x, y))
        norms = (x**2).sum(1)[:, None] + (y**2).sum(1)[None]
        return norms - 2 * x @ y.T, 1e-13 * np.sqrt(x.shape[1]) * norms

    def nearest(self, features: np.ndarray, part: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest other rows of the rows in `part`, [len(part), count], and a bound below all further distances."""
        low, ids = np.empty((len(part), 0)), np.empty((len(part), 0), np.int64)
        for start in range(0, len(features), COLUMNS):
            columns = np.arange(start, min(start + COLUMNS, len(features)))
            squared, error = self._squared(features[part], features[columns])
            new = np.where(part[:, None] == columns[None], np.inf, squared - error)
            low, ids = np.append(low, new, 1), np.append(ids, np.broadcast_to(columns[None], new.shape), 1)
            keep = np.argpartition(low, min(count, low.shape[1]) - 1, axis=1)[:, :count]
            low, ids = np.take_along_axis(low, keep, 1), np.take_along_axis(ids, keep, 1)
        return np.where(np.isfinite(low), ids, -1), low.max(1)

    def count(self, rows: np.ndarray, part: np.ndarray, columns: np.ndarray, radii: Any, column_radii: Any) -> Any:
        """`_count` of the rows in `part`, by float64; pairs at the edge are measured the long way."""
        total = np.zeros(len(part), np.int64)
        for start in range(0, len(columns), COLUMNS):
            block = columns[start : start + COLUMNS]
            limit = radii[:, None] + column_radii[None, start : start + COLUMNS]
            squared, error = self._squared(rows[part], block)
            edge = np.abs(squared - limit) <= error
            inside = (squared <= limit) & ~edge
            for at in _parts(np.argwhere(edge), max(1, ROWS * COLUMNS // rows.shape[1])):
                i, j = at.T
                inside[i, j] = _distance(rows[part[i]], block[j]) <= limit[i, j]
            total += inside.sum(1)
        return total


def _kth_of(features: np.ndarray, part: np.ndarray, candidates: np.ndarray, k: int) -> np.ndarray:
    """The k-th least squared distance of the rows in `part` to their candidates [len(part), c]; -1 is nobody."""
    squared = np.empty(candidates.shape)
    size = max(1, ROWS * COLUMNS // (candidates.shape[1] * features.shape[1]))
    for start in range(0, len(part), size):
        block = slice(start, start + size)
        squared[block] = _distance(features[part[block]][:, None], features[candidates[block]])
    squared[candidates < 0] = np.inf
    return np.partition(squared, k - 1, axis=1)[:, k - 1]


def _kth_of_all(features: np.ndarray, row: int, k: int) -> float:
    """The k-th least squared distance of one row to the others."""
    squared = np.concatenate([_distance(features[row][None], block) for block in _parts(features, ROWS)])
    return np.partition(np.delete(squared, row), k - 1)[k - 1]


def _distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared distances along the last axis, float64, the same for the same two rows wherever they are asked for."""
    return ((x.astype(np.float64) - y.astype(np.float64)) ** 2).sum(-1)


def _parts(array: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """The array in parts of its first axis."""
    return (array[start : start + size] for start in range(0, len(array), size))
