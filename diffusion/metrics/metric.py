"""What a metric is: which features it reads, what of them must be kept, and the numbers that follow."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Num

Rows = Num[np.ndarray, "..."]
"""Features of images, [n, d], of any kind of number; what does not fit is refused with a ValueError."""


@dataclass(frozen=True)
class Metric:
    """A metric with its options set; `lookup` finds the functions that make them, one file each.

    compute:    (generated, reference) -> {name: number}. Both are what `keeps` says; the reference is None where none
                is needed. Pure: the same features give the same numbers.
    reads:      which output of a feature extractor it is computed from: "pool" (one vector an image), "logits" (of
                classes) or "spatial" (a layer with places, flattened to one vector an image).
    keeps:      "statistics" where a `moments.Statistics` of each set is enough, which `moments.Moments` gathers in one
                pass and a reference file holds; "features" where the rows themselves, [n, d], are needed.
    reference:  whether the samples are compared with a reference at all.
    at_least:   how many rows of each set it needs.
    higher_is_better: of the first number, which chooses the best of several models.
    """

    compute: Callable[[Any, Any], Mapping[str, float]]
    reads: str = "pool"
    keeps: Literal["statistics", "features"] = "features"
    reference: bool = True
    higher_is_better: bool = False
    at_least: int = 2


def check_rows(name: str, features: Rows, at_least: int, why: str) -> np.ndarray:
    """The features; ValueError unless they are [n, d] with n of at least `at_least` (why) and every value is finite."""
    if features.ndim != 2 or features.shape[1] < 1:
        raise ValueError(f"{name} has the shape {features.shape}, expected [n, d]: one row of features an image.")
    if len(features) < at_least:
        raise ValueError(f"{name} has {len(features)} rows, expected at least {at_least}: {why}.")
    bad = np.flatnonzero(~np.isfinite(features).all(1))
    if len(bad):
        raise ValueError(
            f"{name} has values that are not finite in {len(bad)} of {len(features)} rows, row {bad[0]} first. "
            "Look at that image: a sampler or an extractor that gave NaN cannot be measured."
        )
    return features


def check_pair(generated: Rows, reference: Rows, at_least: int, why: str) -> None:
    """ValueError unless both are rows of the same features, at least `at_least` of each."""
    check_rows("generated", generated, at_least, why)
    check_rows("reference", reference, at_least, why)
    if generated.shape[1] != reference.shape[1]:
        raise ValueError(
            f"generated has {generated.shape[1]} features a row and reference {reference.shape[1]}; "
            "expected the same features of the same extractor."
        )
