"""All pairs of two sets of rows, in tiles over the devices: never more than [n, 1024] of [n, m] at once.

One set is put on the devices whole, its rows split over them; the other comes in chunks that every device holds. Each
tile is reduced on the devices and what is left of it goes to the host.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion import devices

CHUNK = 1024  # columns of a tile: at 50,000 rows 205 MB of float32, shared by the devices


def tiles(
    reduce: Callable[[Any, Any], Any], rows: Any, columns: Any, *, progress: bool = False, label: str = "pairs"
) -> Iterator[tuple[slice, Any]]:
    """Yields (the columns of a chunk, what `reduce` makes of them with all rows), NumPy arrays.

    reduce:         compiled, (rows, chunk) -> a tree of arrays; it sees more rows and columns than there are.
    rows, columns:  trees of arrays with one leading axis, n and m. Both are filled up with zeros, to a multiple of the
                    devices and of a chunk: give them an array that tells (`real`), and cut results along rows at n.
    """
    from tqdm import tqdm

    mesh = devices.data_mesh()
    num_rows, num_columns = (len(jax.tree.leaves(tree)[0]) for tree in (rows, columns))
    size = min(CHUNK, num_columns)
    held = devices.put(_filled(rows, -(-num_rows // mesh.size) * mesh.size), devices.split(mesh))
    hidden = not progress or jax.process_index() > 0
    with tqdm(total=num_rows * num_columns, unit="pair", unit_scale=True, desc=label, disable=hidden) as bar:
        for start in range(0, num_columns, size):
            part = slice(start, min(start + size, num_columns))
            chunk = _filled(jax.tree.map(lambda array, part=part: array[part], columns), size)
            # fetched before the next is sent, so that at most one tile of each device is alive
            yield part, jax.tree.map(devices.fetch, reduce(held, devices.put(chunk, devices.replicated(mesh))))
            bar.update(num_rows * (part.stop - part.start))


def dot(rows: Float[Array, "n d"], columns: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """All scalar products, in true float32: the default of GPUs and TPUs keeps 10 or 7 bits of each factor."""
    return jnp.matmul(rows, columns.T, precision=jax.lax.Precision.HIGHEST)


def _filled(tree: Any, length: int) -> Any:
    """The tree with zeros behind each leading axis, up to the length."""

    def fill(array: np.ndarray) -> np.ndarray:
        missing = length - len(array)
        return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) if missing else array

    return jax.tree.map(fill, tree)
