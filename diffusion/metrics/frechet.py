"""The Frechet distance between two sets of features, each summed up as a Gaussian: FID, and sFID."""

import numpy as np

from diffusion.metrics.metric import Metric
from diffusion.metrics.moments import Statistics, statistics

__all__ = ["Statistics", "frechet", "frechet_distance", "statistics"]


def frechet(reads: str = "pool") -> Metric:
    """The metric whose number is `frechet_distance`: "frechet", in squared units of the features, 0 or more.

    Of Inception's pooled features it is FID (Heusel et al. 2017, arXiv:1706.08500). With reads="spatial", of its first
    7 channels of a layer with 17 x 17 places, it is sFID (Nash et al. 2021, arXiv:2103.03841), named "spatial_frechet".
    """
    if reads not in ("pool", "spatial"):
        raise ValueError(f"got reads={reads!r}, expected 'pool' (FID) or 'spatial' (sFID).")
    name = "frechet" if reads == "pool" else f"{reads}_frechet"
    return Metric(lambda generated, reference: {name: frechet_distance(generated, reference)}, reads, "statistics")


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), the squared distance (Heusel et al. 2017).

    With C = R R^T, the trace of the root is the sum of the singular values of R_a^T R_b. That keeps all digits where a
    covariance is singular, as it is of fewer rows than features: square roots of the eigenvalues of a product turn
    their rounding, 1e-16, into 1e-8, in each of hundreds of directions. Biased upwards for few samples: quote n.
    The bias falls about as 1 / n and differs between models (Chong & Forsyth 2020, arXiv:1911.07023), so numbers of
    different n do not compare. With fewer rows than features it is dominated by the bias.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"the two sets have {len(a.mean)} and {len(b.mean)} features; expected the same features.")
    cross = np.linalg.svd(_root(a.covariance).T @ _root(b.covariance), compute_uv=False).sum()
    distance = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross
    return float(max(distance, 0.0))


def _root(covariance: np.ndarray) -> np.ndarray:
    """R [d, rank] with R R^T = covariance, without directions whose eigenvalue is nothing but rounding."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > len(values) * np.finfo(values.dtype).eps * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept])[None]
