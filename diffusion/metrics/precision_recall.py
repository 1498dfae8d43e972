"""Improved precision and recall: which samples look like data, and which data the samples reach."""

from typing import NamedTuple

import numpy as np

from diffusion.metrics import neighbours
from diffusion.metrics.metric import Metric, Rows, check_pair


class PrecisionRecall(NamedTuple):
    """Two shares in [0, 1], higher is better."""

    precision: float
    recall: float


def precision_recall(k: int = 3, progress: bool = False) -> Metric:
    """The metric whose numbers are "precision" and "recall", of `shares_reached`; needs the reference's features."""
    check_k(k)

    def compute(generated: Rows, reference: Rows) -> dict[str, float]:
        return shares_reached(generated, reference, k, progress=progress)._asdict()

    return Metric(compute, higher_is_better=True, at_least=k + 1)


def shares_reached(generated: Rows, reference: Rows, k: int = 3, *, progress: bool = False) -> PrecisionRecall:
    """The share of generated samples in the reference's manifold, and of the reference in theirs.

    A set's manifold is the union of balls around its samples, each as wide as the distance to the k-th nearest
    other one (Kynkaanniemi et al. 2019, arXiv:1904.06991, eqs. 1 and 2; k = 3 and 50,000 each as published).

    Both depend on n and k, so quote them, and take as many of each set: more samples make smaller balls, but more of
    them. Two draws of one distribution do not give 1. One outlier in the reference makes a ball that
    takes in many (`density_coverage` mends that). The paper's numbers are of features of VGG-16, ADM's of Inception's
    pool; their codes compare distances in float16 or float32, this one in float64.
    """
    check_k(k)
    check_pair(generated, reference, k + 1, f"a ball reaches to the k-th other sample, k = {k}")
    precision = _share(generated, reference, k, progress)
    return PrecisionRecall(precision, _share(reference, generated, k, progress))


def check_k(k: int) -> None:
    """ValueError for a number of neighbours below 1."""
    if k < 1:
        raise ValueError(f"got k={k}, expected 1 or more neighbours; 3 for precision and recall, 5 for density.")


def _share(points: np.ndarray, centres: np.ndarray, k: int, progress: bool) -> float:
    radii = neighbours.squared_radii(centres, k, progress=progress)
    return float((neighbours.count_balls(points, centres, radii, exact=False, progress=progress) > 0).mean())
