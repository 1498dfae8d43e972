"""The kernel distance (KID): a squared distance between distributions that has an estimate without bias."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import devices
from diffusion.metrics import pairs
from diffusion.metrics.metric import Metric, Rows, check_pair


class KernelDistance(NamedTuple):
    """An estimate of the squared distance, and its standard error; no unit."""

    value: float
    error: float


def kernel_distance(num_subsets: int = 100, subset_size: int = 1000, seed: int = 0, progress: bool = False) -> Metric:
    """The metric whose numbers are "kernel_distance" and "kernel_distance_error"; it needs the reference's features.

    With num_subsets subsets it is `distance_of_subsets`, as published; with num_subsets=0 `distance_of_all`, which has
    the smaller error and an honest one.
    """
    if num_subsets < 0 or num_subsets == 1 or subset_size < 2:
        raise ValueError(
            f"got num_subsets={num_subsets} and subset_size={subset_size}, expected 2 or more subsets (or 0: all rows "
            "at once) of 2 or more rows; 100 of 1000 as published."
        )

    def compute(generated: np.ndarray, reference: np.ndarray) -> dict[str, float]:
        if num_subsets:
            found = distance_of_subsets(generated, reference, num_subsets, subset_size, seed, progress=progress)
        else:
            found = distance_of_all(generated, reference, progress=progress)
        return {"kernel_distance": found.value, "kernel_distance_error": found.error}

    return Metric(compute, at_least=subset_size if num_subsets else 3)


def distance_of_subsets(
    generated: Rows,
    reference: Rows,
    num_subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
    *,
    progress: bool = False,
) -> KernelDistance:
    """The mean over random subsets of the unbiased MMD^2 of the kernel (x.y / d + 1)^3 (Binkowski et al. 2018).

    arXiv:1801.01401, section 4. Each subset is drawn without repetition from either set; then
    MMD^2 = mean of k(x_i, x_j), i != j, + the same of y - 2 mean of k(x_i, y_j). Leaving out i = j takes the bias
    away, at any size, so an estimate for equal distributions is around 0 and negative as often as not. Do not clip it.

    The error is the deviation over subsets / sqrt(num_subsets), where published codes print the deviation itself.
    Subsets of one set overlap, so it is too small where num_subsets * subset_size is above n, and 0 where subsets are
    the whole sets: then quote `distance_of_all`.
    """
    check_pair(generated, reference, subset_size, f"a subset has {subset_size} of them; give a smaller subset_size")
    chosen = (
        [generator.choice(len(rows), subset_size, replace=False) for rows in (generated, reference)]
        for generator in (np.random.default_rng((seed, subset)) for subset in range(num_subsets))
    )
    picks = [np.stack(rows) for rows in zip(*chosen, strict=True)]
    values = estimates(generated, reference, picks[0], picks[1], progress=progress)
    return KernelDistance(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))


def estimates(generated: Rows, reference: Rows, first: Any, second: Any, *, progress: bool) -> np.ndarray:
    """The unbiased MMD^2 of each pair of subsets, [subsets], float64. first, second: their rows, [subsets, size]."""
    from tqdm import tqdm

    mesh, shift = devices.data_mesh(), _typical(generated, reference)
    found = []
    for start in tqdm(range(0, len(first), mesh.size), desc="subsets", disable=not progress or jax.process_index() > 0):
        taken = np.minimum(np.arange(start, start + mesh.size), len(first) - 1)  # the last ones are filled up, then cut
        sets = tuple(rows[of[taken]].astype(np.float32) for rows, of in ((generated, first), (reference, second)))
        sums = jax.tree.map(devices.fetch, _subset_sums(*devices.put(sets, devices.split(mesh)), shift))
        found.append(np.stack([row_sums.astype(np.float64).sum(1) for row_sums in sums]))
    xx, yy, xy = np.concatenate(found, axis=1)[:, : len(first)]
    size = first.shape[1]
    return (xx + yy) / (size * (size - 1)) - 2 * xy / size**2


def distance_of_all(generated: Rows, reference: Rows, *, progress: bool = False) -> KernelDistance:
    """The unbiased MMD^2 of all rows at once, kernel as in `distance_of_subsets`, and its jackknife error.

    The error follows from leaving out one row after the other of either set, which costs nothing more, as the
    sums of the kernel over each row are there (Efron & Stein 1981: too large on average, if anything; for equal
    distributions its square is about double). Negative values are as there.
    """
    check_pair(generated, reference, 3, "the jackknife leaves one out and needs two more")
    shift = _typical(generated, reference)
    xx, _ = _sums(generated, generated, shift, same=True, progress=progress)
    yy, _ = _sums(reference, reference, shift, same=True, progress=progress)
    xy, yx = _sums(generated, reference, shift, same=False, progress=progress)
    n, m, cross = len(xx), len(yy), xy.sum()
    inner, outer = xx.sum() / (n * (n - 1)), yy.sum() / (m * (m - 1))
    without_x = (xx.sum() - 2 * xx) / ((n - 1) * (n - 2)) + outer - 2 * (cross - xy) / ((n - 1) * m)
    without_y = inner + (yy.sum() - 2 * yy) / ((m - 1) * (m - 2)) - 2 * (cross - yx) / (n * (m - 1))
    variance = sum((len(left) - 1) * left.var() for left in (without_x, without_y))
    return KernelDistance(float(inner + outer - 2 * cross / (n * m)), float(np.sqrt(variance)))


def _sums(x: Any, y: Any, shift: float, *, same: bool, progress: bool) -> tuple[np.ndarray, np.ndarray]:
    """The kernel's sums over y of each x and over x of each y, float64; of the same set without a row itself."""
    rows, columns = ((s.astype(np.float32), np.arange(1, len(s) + 1, dtype=np.int32)) for s in (x, y))
    over_y, over_x = np.zeros(len(x)), np.zeros(len(y))
    reduce = functools.partial(_tile_sums, shift=shift, same=same)
    for part, (by_row, by_column) in pairs.tiles(reduce, rows, columns, progress=progress, label="kernel"):
        over_y += by_row[: len(x)]
        over_x[part] = by_column[: part.stop - part.start]
    return over_y, over_x


@functools.partial(jax.jit, static_argnames="same")
def _tile_sums(rows: Any, columns: Any, *, shift: Any, same: bool) -> Any:
    """Sums of a tile along both axes; an id of 0 marks rows that only fill up."""
    (x, x_id), (y, y_id) = rows, columns
    counts = (x_id[:, None] > 0) & (y_id[None] > 0) & (not same or x_id[:, None] != y_id[None])
    kernel = jnp.where(counts, _kernel(x, y, shift), 0)
    return kernel.sum(1), kernel.sum(0)


@jax.jit
def _subset_sums(x: Any, y: Any, shift: Any) -> Any:
    """Row sums of k(x, x), k(y, y), both without the diagonal, and of k(x, y), each [subsets, size]."""

    def one(x: Any, y: Any) -> Any:
        others = 1 - jnp.eye(len(x))
        return (
            (_kernel(x, x, shift) * others).sum(1),
            (_kernel(y, y, shift) * others).sum(1),
            _kernel(x, y, shift).sum(1),
        )

    return jax.vmap(one)(x, y)


def _kernel(x: Any, y: Any, shift: Any) -> Any:
    """(x.y / d + 1)^3 less a constant, which MMD^2 does not see and without which float32 sums lose more."""
    return (pairs.dot(x, y) / x.shape[1] + 1) ** 3 - shift


def _typical(x: np.ndarray, y: np.ndarray) -> float:
    """The kernel of the two means."""
    means = (rows.mean(0, dtype=np.float64) for rows in (x, y))
    return float((np.prod(list(means), axis=0).mean() + 1) ** 3)
