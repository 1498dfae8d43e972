import numpy as np
import pytest

from diffusion.metrics.sliced_wasserstein import sliced_wasserstein


def test_a_moved_cloud_is_as_far_as_its_move_projected():
    """W_2 along u of a cloud and its copy moved by d is |d . u|, whose mean square over directions is |d|^2 / dim."""
    cloud = np.random.default_rng(0).normal(size=(500, 3))
    moved = np.random.default_rng(1).permutation(cloud) + np.array([3.0, 0.0, -4.0])
    assert sliced_wasserstein(cloud, moved, num_directions=5_000) == pytest.approx(5 / np.sqrt(3), rel=0.02)
    assert sliced_wasserstein(cloud, np.random.default_rng(2).permutation(cloud)) == pytest.approx(0, abs=1e-12)


def test_gaussians_differ_by_their_standard_deviations():
    """W_2 of N(0, a^2) and N(0, b^2) is |a - b| on every line."""
    a, b = np.random.default_rng(0).normal(size=(2, 20_000, 2))
    assert sliced_wasserstein(2 * a, 0.5 * b) == pytest.approx(1.5, rel=0.02)


def test_clouds_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 2\) and \(5, 2\)"):
        sliced_wasserstein(np.zeros((4, 2)), np.zeros((5, 2)))
