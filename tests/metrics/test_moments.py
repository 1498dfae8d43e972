import json
import pickle

import numpy as np
import pytest

from diffusion.metrics.moments import BLOCK, Moments, read, statistics, write


def features(n, d, offset=0.0, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + offset


def gathered(rows, sizes):
    moments, start = Moments(), 0
    for size in sizes:
        moments, start = moments.update(rows[start : start + size]), start + size
    assert start == len(rows)
    return moments


def test_one_pass_gives_the_mean_and_covariance_of_all_rows():
    rows = features(2 * BLOCK + 77, 6)
    found = statistics(rows)
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(rows, rowvar=False), rtol=1e-11, atol=1e-12)
    assert found.num_rows == len(rows)


def test_batches_change_no_bit():
    rows = features(2 * BLOCK + 77, 6).astype(np.float32)
    whole, n = gathered(rows, [len(rows)]), len(rows)
    for sizes in ([1] * 50 + [n - 50], [0, 300, 1, n - 301], [BLOCK, n - BLOCK], [500] * (n // 500) + [n % 500]):
        for one, other in zip(gathered(rows, sizes).statistics(), whole.statistics(), strict=True):
            assert np.array_equal(one, other)


def test_a_pass_that_was_kept_in_a_file_goes_on_with_the_same_bits(tmp_path):
    rows = features(BLOCK + 500, 4)
    np.savez(tmp_path / "kept.npz", **gathered(rows[:700], [700])._asdict())
    with np.load(tmp_path / "kept.npz") as kept:
        resumed = Moments(**kept).update(rows[700:])
    assert np.array_equal(resumed.statistics().covariance, statistics(rows).covariance)


def test_halves_merge_to_the_whole_in_either_order():
    rows = features(3 * BLOCK + 10, 5)
    first, second = (gathered(part, [len(part)]) for part in (rows[: BLOCK + 400], rows[BLOCK + 400 :]))
    for merged in (first.merge(second), second.merge(first), Moments().merge(first).merge(second).merge(Moments())):
        np.testing.assert_allclose(merged.statistics().covariance, np.cov(rows, rowvar=False), rtol=1e-10, atol=1e-12)
        assert merged.statistics().num_rows == len(rows)


def test_a_mean_of_many_deviations_costs_no_digits():
    """A sum of x x^T loses (mean / deviation)^2 of them: measured here, 1e-6 against 1e-12."""
    rows = np.random.default_rng(0).normal(size=(5_000, 8)) + 1e4
    exact = np.cov((rows - 1e4), rowvar=False)  # the shift is exact to 1e-12
    mean = rows.mean(0)
    summed = (rows.T @ rows - len(rows) * np.outer(mean, mean)) / (len(rows) - 1)
    assert np.abs(gathered(rows, [500] * 10).statistics().covariance - exact).max() < 1e-11
    assert np.abs(summed - exact).max() > 1e-8


def test_a_file_has_the_public_layout_and_comes_back_whole(tmp_path):
    pool, spatial = statistics(features(50, 4)), statistics(features(60, 3))
    write(tmp_path / "ref.npz", {"pool": pool, "spatial": spatial}, {"data": "digits", "hash": ["ab", 1]})
    with np.load(tmp_path / "ref.npz") as public:
        assert np.array_equal(public["mu"], pool.mean)
        assert np.array_equal(public["sigma"], pool.covariance)
        assert np.array_equal(public["sigma_s"], spatial.covariance)
        assert json.loads(str(public["facts"])) == {"data": "digits", "hash": ["ab", 1]}
    sets, facts = read(tmp_path / "ref.npz")
    assert facts == {"data": "digits", "hash": ["ab", 1]}
    assert sets["spatial"].num_rows == 60
    assert all(np.array_equal(a, b) for a, b in zip(sets["pool"], pool, strict=True))
    assert [file.name for file in tmp_path.iterdir()] == ["ref.npz"]


def test_a_file_from_elsewhere_holds_only_mu_and_sigma(tmp_path):
    np.savez(tmp_path / "fid.npz", mu=np.arange(3, dtype=np.float32), sigma=np.eye(3, dtype=np.float32))
    sets, facts = read(tmp_path / "fid.npz")
    assert (list(sets), facts, sets["pool"].num_rows) == (["pool"], {}, None)
    assert sets["pool"].covariance.dtype == np.float64


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"arr_0": np.zeros(3)}, "holds arr_0, expected the arrays mu"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"sigma of shape \(4, 4\)"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, np.nan], [0, 1]])}, "not finite"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 1.0], [0, 1]])}, "not symmetric"),
    ],
)
def test_a_file_that_holds_no_statistics_is_refused(tmp_path, arrays, words):
    np.savez(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(ValueError, match=words):
        read(tmp_path / "wrong.npz")


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "edm.pkl").write_bytes(pickle.dumps({"fid": {"mu": np.zeros(2), "sigma": np.eye(2)}}))
    for name in ("array.npy", "edm.pkl"):
        with pytest.raises(ValueError, match=f"{name} is no .npz archive, expected one with the arrays mu"):
            read(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nowhere.npz")


def test_rows_that_do_not_fit_are_refused():
    wrong = features(10, 3)
    wrong[4, 1] = np.nan
    with pytest.raises(ValueError, match="1 of 10 rows, row 4 first"):
        Moments().update(wrong)
    with pytest.raises(ValueError, match="rows of 4 features after rows of 3"):
        Moments().update(features(10, 3)).update(features(10, 4))
    with pytest.raises(ValueError, match="rows of 4 features after rows of 3"):
        Moments().update(features(10, 3)).merge(Moments().update(features(10, 4)))
    with pytest.raises(ValueError, match="got 1 rows"):
        statistics(features(1, 3))
    with pytest.raises(ValueError, match="got statistics of 'logits'"):
        write("never.npz", {"logits": statistics(features(5, 2))}, {})
