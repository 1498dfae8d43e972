"""Density and coverage: precision and recall that outliers do not upset."""

from typing import NamedTuple

import numpy as np

from diffusion.metrics import neighbours
from diffusion.metrics.metric import Metric, Rows, check_pair
from diffusion.metrics.precision_recall import check_k


class DensityCoverage(NamedTuple):
    """Density in [0, n_reference / k], 1 for equal distributions; coverage in [0, 1]. Higher is better."""

    density: float
    coverage: float


def density_coverage(k: int = 5, progress: bool = False) -> Metric:
    """The metric whose numbers are "density" and "coverage", of `balls_reached`; needs the reference's features."""
    check_k(k)

    def compute(generated: Rows, reference: Rows) -> dict[str, float]:
        return balls_reached(generated, reference, k, progress=progress)._asdict()

    return Metric(compute, higher_is_better=True, at_least=k + 1)


def balls_reached(generated: Rows, reference: Rows, k: int = 5, *, progress: bool = False) -> DensityCoverage:
    """How many of the reference's balls a generated sample lies in, over k, and the share of balls with a sample in.

    A ball is around a reference sample, as wide as the distance to the k-th nearest other one
    (Naeem et al. 2020, arXiv:2002.09797, section 3; k = 5 and 10,000 each as published). Its edge is not in it, as in
    the authors' code (prdc): so a copy of the reference has density 1, where with edges it would have (k + 1) / k, and
    a reference sample with k copies or more is never covered. `precision_recall` counts edges, as its authors do.
    The paper's numbers are of features of VGG-16.

    For equal distributions density is 1 on average, above 1 where samples crowd in the densest places; coverage is
    1 - (m-1)...(m-k) / ((n+m-1)...(n+m-k)) on average whatever the distribution: 0.969 for k = 5 and many
    samples, as many of each. Coverage grows with n / m: quote both, and k.
    """
    check_k(k)
    check_pair(generated, reference, k + 1, f"a ball reaches to the k-th other sample, k = {k}")
    radii = neighbours.squared_radii(reference, k, progress=progress)
    radii = np.where(radii > 0, np.nextafter(radii, 0), -np.inf)  # the next smaller number: all but the edge
    balls = neighbours.count_balls(generated, reference, radii, progress=progress)
    inside = neighbours.count_inside(reference, radii, generated, exact=False, progress=progress)
    return DensityCoverage(float(balls.mean() / k), float((inside > 0).mean()))
