"""Sliced Wasserstein distance: how far two clouds of points are apart, without assuming a shape."""

import numpy as np
from jaxtyping import Float


def sliced_wasserstein(
    first: Float[np.ndarray, "n dim"], second: Float[np.ndarray, "m dim"], num_directions: int = 256, seed: int = 0
) -> float:
    """The root mean square of W_2 over random lines through the origin (Rabin et al. 2011; Bonneel et al. 2015).

    On a line, W_2 is the distance of the sorted projections. Both clouds have the same number of points; in units of
    the data. Two draws from one distribution are about n^-1/2 apart.
    """
    if first.shape != second.shape:
        raise ValueError(f"got clouds of shapes {first.shape} and {second.shape}, expected two of the same shape.")
    directions = np.random.default_rng(seed).normal(size=(first.shape[1], num_directions))
    directions /= np.linalg.norm(directions, axis=0)
    sorted_projections = [np.sort(np.asarray(cloud, np.float64) @ directions, axis=0) for cloud in (first, second)]
    return float(np.sqrt(np.mean((sorted_projections[0] - sorted_projections[1]) ** 2)))
