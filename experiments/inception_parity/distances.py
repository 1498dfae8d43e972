"""Is our Frechet distance pytorch-fid's? Prints a table of both on the same features; see README.md beside this file.

PYTHONPATH=. python experiments/inception_parity/distances.py
"""

import sys
from pathlib import Path
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diffusion.metrics.frechet import frechet_distance, statistics

SETS = [(1000, 64), (5000, 512), (5000, 2048)]  # rows of features, features


def pytorch_fids():
    """Its distance function. The module's own imports ask for torchvision, which the function does without."""
    without = ("torchvision", "torchvision.transforms", "pytorch_fid.inception")
    with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in without}):
        from pytorch_fid.fid_score import calculate_frechet_distance
    return calculate_frechet_distance


def features(count, width, seed):
    """Random features that are correlated, of uneven size and not negative, as those behind a ReLU are."""
    mixing = np.random.default_rng(width).normal(size=(width, width)) * np.exp(-3 * np.arange(width) / width)
    shift = 0.1 * np.random.default_rng(seed).normal(size=width)
    return np.maximum(np.random.default_rng(100 + seed).normal(size=(count, width)) @ mixing.T / 8 + shift, 0)


def main():
    theirs = pytorch_fids()
    print("| rows | features | pytorch-fid | ours | relative difference |\n|---|---|---|---|---|")
    for count, width in SETS:
        a, b = (features(count, width, seed) for seed in (1, 2))
        moments = [(rows.mean(0), np.cov(rows, rowvar=False)) for rows in (a, b)]
        expected, found = theirs(*moments[0], *moments[1]), frechet_distance(statistics(a), statistics(b))
        print(f"| {count} | {width} | {expected:.8g} | {found:.8g} | {abs(found / expected - 1):.1e} |", flush=True)


if __name__ == "__main__":
    main()
