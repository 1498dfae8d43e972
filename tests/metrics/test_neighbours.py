"""Balls of neighbours and the two pairs of numbers made of them, against float64 by brute force."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from diffusion import devices
from diffusion.metrics import neighbours, pairs
from diffusion.metrics.density_coverage import balls_reached
from diffusion.metrics.precision_recall import shares_reached

CASES = {  # how many features, scale, offset, type
    "plane": (2, 1.0, 0.0, np.float32),
    "far from zero": (3, 1.0, 1e5, np.float64),
    "wide": (300, 0.5, 2.0, np.float32),
    "tiny": (16, 1e-25, 0.0, np.float32),
    "huge": (16, 1e25, 0.0, np.float32),
    "a lattice": (3, 3.0, 0.0, np.int16),  # full of ties
}


def squared(a, b):
    return cdist(a.astype(np.float64), b.astype(np.float64), "sqeuclidean")


def radii(rows, k):
    return np.sort(squared(rows, rows), axis=1)[:, k]


@pytest.fixture(params=CASES)
def pair(request, monkeypatch):
    d, scale, offset, kind = CASES[request.param]
    monkeypatch.setattr(pairs, "CHUNK", 64)  # several tiles, and a last one that is not full
    monkeypatch.setattr(neighbours, "COLUMNS", 100)
    rng = np.random.default_rng(0)
    near = [scale * rng.normal(size=(n, d)) + offset for n in (331, 230)]
    return tuple((np.round(rows) if kind is np.int16 else rows).astype(kind) for rows in near)


def test_radii_are_those_of_float64(pair):
    for k in (1, 3, 20):
        np.testing.assert_allclose(neighbours.squared_radii(pair[0], k), radii(pair[0], k), rtol=1e-11)


def test_clusters_too_tight_for_float32_have_the_radii_of_float64():
    """Two clusters 1 apart and 1e-5 wide: in float32 all distances within one are noise, of either sign."""
    rows = 1e-5 * np.random.default_rng(0).normal(size=(300, 3))
    rows[::2] += 1
    np.testing.assert_allclose(neighbours.squared_radii(rows, 3), radii(rows, 3), rtol=1e-9)
    assert shares_reached(rows + 1e-9, rows).precision == 1


@pytest.mark.parametrize("far", [1e3, 1e7, 1e12, 1e18])
def test_an_outlier_however_far_changes_nothing_for_the_others(far):
    """Beside numbers of its size, |x|^2 + |y|^2 - 2 x.y has no digit of their distances left, in float64 neither."""
    rows = np.random.default_rng(0).normal(size=(300, 6))
    rows[7] = far
    np.testing.assert_allclose(neighbours.squared_radii(rows, 3), radii(rows, 3), rtol=1e-12)
    points = np.random.default_rng(1).normal(size=(200, 6))
    inside = squared(points, rows) <= radii(rows, 3)[None]
    assert np.array_equal(neighbours.count_balls(points, rows, radii(rows, 3)), inside.sum(1))


def test_every_point_is_in_the_balls_that_float64_says(pair):
    points, centres = pair
    within = neighbours.squared_radii(centres, 4)
    inside = squared(points, centres) <= within[None]
    assert np.array_equal(neighbours.count_balls(points, centres, within), inside.sum(1))
    assert np.array_equal(neighbours.count_inside(centres, within, points), inside.sum(0))
    assert np.array_equal(neighbours.count_balls(points, centres, within, exact=False) > 0, inside.any(1))
    assert np.array_equal(neighbours.count_inside(centres, within, points, exact=False) > 0, inside.any(0))


def test_the_shares_are_those_of_brute_force(pair):
    generated, reference = pair
    distances = squared(generated, reference)
    expected = (
        (distances <= radii(reference, 3)[None]).any(1).mean(),
        (distances <= radii(generated, 3)[:, None]).any(0).mean(),
    )
    assert shares_reached(generated, reference) == pytest.approx(expected, abs=1e-12)
    inside = distances < radii(reference, 5)[None]
    expected = inside.sum(1).mean() / 5, inside.any(0).mean()
    assert balls_reached(generated, reference) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("copies", [1, 5, 6])
def test_the_edge_of_a_ball_counts_for_precision_and_not_for_density(copies):
    """As in the authors' codes: of a set and itself with k = 5, density is 1 unless k copies make balls of no width."""
    data = np.repeat(np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32), copies, axis=0)
    assert balls_reached(data, data) == ((1, 1) if copies < 6 else (0, 0))
    assert shares_reached(data, data, k=5) == (1, 1)
    still = np.full((30, 3), 0.1)
    assert balls_reached(still, still) == (0, 0)
    assert shares_reached(still, still) == (1, 1)


def test_a_copy_of_the_neighbour_lies_on_the_edge_and_so_inside():
    """The last digit decides, in many dimensions: float32 alone would be right in about half of the cases."""
    rng = np.random.default_rng(0)
    centres = (100 + rng.normal(size=(200, 50))).astype(np.float32)
    third = np.argsort(squared(centres, centres), axis=1)[:, 3]
    within = neighbours.squared_radii(centres, 3)
    for i in range(0, 200, 40):
        balls = neighbours.count_inside(centres[i : i + 1], within[i : i + 1], centres[third[i]][None])
        assert balls.tolist() == [1]
        less = neighbours.count_inside(centres[i : i + 1], within[i : i + 1] * (1 - 1e-12), centres[third[i]][None])
        assert less.tolist() == [0]


def test_samples_that_are_data_reach_all_of_it_and_distant_ones_nothing():
    data = np.random.default_rng(0).normal(size=(150, 8))
    assert shares_reached(data, data) == (1, 1)
    assert balls_reached(data, data).coverage == 1
    assert shares_reached(data + 100, data) == (0, 0)
    assert balls_reached(data + 100, data) == (0, 0)


def test_a_collapsed_model_is_precise_and_recalls_nothing():
    data = np.random.default_rng(0).normal(size=(400, 4))
    collapsed = data[:1] + 1e-6 * np.random.default_rng(1).normal(size=(400, 4))
    precision, recall = shares_reached(collapsed, data)
    assert (precision, recall <= 1 / 400) == (1, True)


def test_one_outlier_swells_precision_and_not_density():
    """Naeem et al. 2020, section 2: the ball of one stray reference sample takes in samples that are far from data."""
    rng = np.random.default_rng(0)
    data, off = rng.normal(size=(500, 8)), rng.normal(size=(500, 8)) + 20
    stray = np.concatenate([data, np.full((1, 8), 24.0)])
    assert shares_reached(off, data).precision == 0
    assert shares_reached(off, stray).precision > 0.9
    assert balls_reached(off, stray).density < 0.25


@pytest.mark.parametrize(("n", "m", "k"), [(60, 60, 5), (40, 80, 3), (100, 30, 2)])
def test_equal_distributions_have_the_known_means_of_density_and_coverage(n, m, k):
    """1, and 1 - (m-1)...(m-k) / ((n+m-1)...(n+m-k)), whatever the distribution (Naeem et al. 2020)."""
    rng, found = np.random.default_rng(0), []
    for _ in range(50):
        found.append(balls_reached(rng.gamma(2, size=(n, 2)), rng.gamma(2, size=(m, 2)), k))
    i = np.arange(1, k + 1)
    expected = 1, 1 - np.prod((m - i) / (n + m - i))
    error = np.std(found, axis=0) / np.sqrt(len(found))
    assert np.all(np.abs(np.mean(found, axis=0) - expected) < 3.5 * error)
    assert np.all(error < 0.03)


def test_a_ball_needs_a_neighbour():
    rows = np.random.default_rng(0).normal(size=(5, 2))
    with pytest.raises(ValueError, match="got k=5 for 5 rows, expected 1 <= k <= 4"):
        neighbours.squared_radii(rows, 5)
    with pytest.raises(ValueError, match="reference has 5 rows, expected at least 6: a ball reaches to the k-th"):
        balls_reached(np.zeros((9, 2)), rows)


def test_devices_need_nothing_of_each_other():
    """Each ranks its own rows: the compiler alone would gather all distances on every device."""
    mesh, points = devices.data_mesh(), neighbours._Frame(np.eye(64)).points(np.eye(64), 1.0)
    rows, columns = devices.put(points, devices.split(mesh)), devices.put(points, devices.replicated(mesh))
    for lowered in (
        neighbours._nearest.lower(rows, columns, count=5, mesh=mesh),
        neighbours._bounds.lower(rows, columns),
    ):
        assert "all-" not in lowered.compile().as_text()
