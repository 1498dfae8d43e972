"""The Frechet distance between two sets of features, each summed up as a Gaussian."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Statistics(NamedTuple):
    """Mean [d] and covariance [d, d] of features, float64, and from how many rows they were taken."""

    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]
    num_rows: int


def statistics(features: Float[np.ndarray, "n d"]) -> Statistics:
    """The Statistics of feature rows; the covariance divides by n - 1. At least two rows are needed."""
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"got features of shape {features.shape}, expected [n, d] with n of at least 2.")
    return Statistics(features.mean(0), np.atleast_2d(np.cov(features, rowvar=False)), len(features))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), the squared distance (Heusel et al. 2017).

    The trace of the root is taken as the sum of square roots of the eigenvalues of the symmetric
    C_a^(1/2) C_b C_a^(1/2), which singular covariances do not upset. Biased upwards for few samples: quote n.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"the two sets have {len(a.mean)} and {len(b.mean)} features; expected the same features.")
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ b.covariance @ root), 0)).sum()
    distance = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross
    return float(max(distance, 0.0))
