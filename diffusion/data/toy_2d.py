"""Points in the plane, for looking at what a model learns: made on the spot, nothing to download."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from diffusion.data.dataset import Dataset, MemorySource, require_split

Points = Float[np.ndarray, "n 2"]
Labels = Int[np.ndarray, " n"]


def toy_2d(split: str = "train", kind: str = "two_moons", num_points: int = 20_000, noise: float = 0.05) -> Dataset:
    """Returns points within [-1, 1]^2, each split from its own fixed random numbers.

    Args:
        split: "train" or "test".
        kind: "mixture" (8 Gaussians on a circle, labels 0..7), "two_moons" (labels 0, 1) or "swiss_roll" (unlabelled).
        num_points: how many.
        noise: standard deviation of the Gaussian noise around the shape, in the units of the result.

    Raises:
        ValueError: an unknown split or kind, or a number that makes no sense.
    """
    require_split(split, ("train", "test"), "toy_2d")
    if kind not in KINDS:
        raise ValueError(f"got kind={kind!r}, expected one of: {', '.join(KINDS)}.")
    if num_points < 1 or not 0 <= noise < 0.3:
        raise ValueError(f"got num_points={num_points}, noise={noise}; expected at least 1, and 0 <= noise < 0.3.")
    rng = np.random.default_rng(("train", "test").index(split))
    make, names = KINDS[kind]
    points, labels = make(rng, num_points)
    points = np.clip(points + noise * rng.normal(size=points.shape), -1, 1).astype(np.float32)
    source = MemorySource(points, labels.astype(np.int32) if names else None)
    return Dataset(source, (2,), num_values=0, class_names=names)


def _mixture(rng: np.random.Generator, n: int) -> tuple[Points, Labels]:
    labels = rng.integers(8, size=n)
    angle = labels * np.pi / 4
    return 0.7 * np.stack([np.cos(angle), np.sin(angle)], axis=1), labels


def _two_moons(rng: np.random.Generator, n: int) -> tuple[Points, Labels]:
    labels, angle = rng.integers(2, size=n), np.pi * rng.random(n)
    sign = 1 - 2 * labels
    return np.stack([0.5 * np.cos(angle) - 0.25 * sign, 0.5 * sign * np.sin(angle) - 0.12 * sign], axis=1) * 1.1, labels


def _swiss_roll(rng: np.random.Generator, n: int) -> tuple[Points, Labels]:
    angle = 1.5 * np.pi * (1 + 2 * rng.random(n))
    return angle[:, None] / (5 * np.pi) * np.stack([np.cos(angle), np.sin(angle)], axis=1), np.zeros(n, int)


KINDS: dict[str, tuple[Callable[[np.random.Generator, int], tuple[Points, Labels]], tuple[str, ...]]] = {
    "mixture": (_mixture, tuple(str(i) for i in range(8))),
    "two_moons": (_two_moons, ("upper", "lower")),
    "swiss_roll": (_swiss_roll, ()),
}
