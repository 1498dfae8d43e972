"""What metrics are asked for, and the one pass that gathers for all of them."""

import numpy as np
import pytest

from diffusion import features, measuring, references
from diffusion.features import Extractor
from diffusion.metrics.metric import Metric

IMAGES = np.random.default_rng(0).integers(0, 256, (23, 4, 4, 1), np.uint8)
PIXELS = IMAGES.reshape(23, 16) / 127.5 - 1


def in_batches(*sizes):
    return np.split(IMAGES, np.cumsum(sizes))


class TestChoosing:
    @pytest.mark.parametrize(
        ("asked", "options"),
        [
            ("frechet", {"name": "frechet", "reads": "pool"}),
            ("FID", {"name": "frechet", "reads": "pool"}),
            ("sfid", {"name": "frechet", "reads": "spatial"}),
            ("kid:num_subsets=0", {"name": "kernel_distance", "num_subsets": 0, "subset_size": 1000, "seed": 0}),
            ("precision_recall:k=5", {"name": "precision_recall", "k": 5}),
            ({"name": "inception_score", "num_splits": 2}, {"name": "inception_score", "num_splits": 2, "seed": 0}),
        ],
    )
    def test_all_options_are_said(self, asked, options):
        assert measuring.choose(asked).options == options

    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            ("frechte", "Did you mean 'frechet'"),
            ("frechet:k=3", "metric.k is not an option"),
            ("precision_recall:k", "expected NAME or NAME:OPTION=VALUE"),
            ("precision_recall:k=many", "k is 'many', expected int"),
            ("precision_recall:k=0", "expected 1 or more neighbours"),
        ],
    )
    def test_what_there_is_not_is_refused(self, asked, message):
        with pytest.raises(ValueError, match=message):
            measuring.choose(asked)


class TestGathering:
    @pytest.mark.parametrize("sizes", [(), (7,), (1, 1, 12)])
    def test_statistics_and_rows_are_those_of_all_images_whatever_the_batches(self, sizes):
        gathered = measuring.gather(in_batches(*sizes), features.raw_pixels(), statistics=("pool",), features=("pool",))
        np.testing.assert_allclose(gathered.features["pool"], PIXELS, atol=1e-6)
        np.testing.assert_allclose(gathered.statistics["pool"].mean, PIXELS.mean(0), atol=1e-6)
        np.testing.assert_allclose(gathered.statistics["pool"].covariance, np.cov(PIXELS.T), atol=1e-6)

    @pytest.mark.parametrize("sizes", [(), (7,), (1, 1, 12)])
    @pytest.mark.parametrize("every", [1, 3, 23, 50])
    def test_rows_are_kept_of_each_so_manieth_image_whatever_the_batches(self, sizes, every):
        gathered = measuring.gather(in_batches(*sizes), features.raw_pixels(), features=("pool",), every=every)
        np.testing.assert_allclose(gathered.features["pool"], PIXELS[::every], atol=1e-6)

    def test_no_more_is_gathered_than_the_metrics_need(self):
        asked = [measuring.choose(name) for name in ("fid", "precision_recall", "kid", "is")]
        assert measuring.needed(asked) == {"statistics": {"pool"}, "features": {"pool", "logits"}}

    def test_images_and_features_that_do_not_fit_are_refused(self):
        with pytest.raises(ValueError, match="points have no features"):
            measuring.check(features.raw_pixels(), [], (2,))
        with pytest.raises(ValueError, match="gives pool, but the metric inception_score reads logits"):
            measuring.check(features.raw_pixels(), [measuring.choose("is")], (4, 4, 1))
        assert measuring.check(features.raw_pixels(), [measuring.choose("fid")], (4, 4, 1)) == {"pool": 16}


def test_numbers_are_the_metrics_own():
    metric = Metric(lambda generated, reference: {"sum": generated.sum() + reference}, keeps="features")
    gathered = measuring.gather([IMAGES], features.raw_pixels(), features=("pool",))
    found = measuring.numbers(measuring.Chosen({}, metric), gathered, 2.0)
    assert found == {"sum": pytest.approx(PIXELS.sum() + 2, rel=1e-5)}


@pytest.mark.parametrize(
    ("name", "extractor", "label"),
    [
        ("frechet", "inception", "FID@50000"),
        ("spatial_frechet", "inception", "sFID@50000"),
        ("kernel_distance_error", "inception", "KID_error@50000"),
        ("inception_score", "inception", "IS@50000"),
        ("precision", "inception", "precision@50000"),
        ("frechet", "guide", "frechet_guide@50000"),
    ],
)
def test_numbers_are_called_as_in_papers_where_they_are_inceptions(name, extractor, label):
    assert measuring.label(name, extractor, 50_000) == label


class TestReferences:
    def facts(self, **changes):
        return {"features": {"name": "raw_pixels", "preprocessing": "p"}, "num_images": 23, **changes}

    def written(self, path, kept=("pool",)):
        gathered = measuring.gather([IMAGES], features.raw_pixels(), statistics=("pool",), features=kept)
        references.write(path, gathered, self.facts())
        return gathered

    def test_what_is_written_is_read(self, tmp_path):
        gathered = self.written(tmp_path / references.FILE)
        reference = references.read(tmp_path)
        assert reference.facts == self.facts()
        found = reference.of(measuring.choose("fid").metric)
        np.testing.assert_array_equal(found.covariance, gathered.statistics["pool"].covariance)
        np.testing.assert_array_equal(reference.of(measuring.choose("kid").metric), gathered.features["pool"])

    def test_the_same_content_has_the_same_hash(self, tmp_path):
        for name in ("a.npz", "b.npz"):
            self.written(tmp_path / name)
        assert references.read(tmp_path / "a.npz").hash == references.read(tmp_path / "b.npz").hash

    def test_a_public_file_is_taken_for_inceptions(self, tmp_path):
        np.savez(tmp_path / "public.npz", mu=np.zeros(3), sigma=np.eye(3))
        reference = references.read(tmp_path / "public.npz")
        assert references.made_with(reference) == {"name": "inception", "weights": None}
        reference.check_made_with({"name": "inception", "weights": "any"})
        with pytest.raises(ValueError, match="expected features=inception"):
            reference.check_made_with({"name": "guide"})
        with pytest.raises(ValueError, match="rows of features"):
            reference.of(measuring.choose("kid").metric)
        with pytest.raises(ValueError, match="no statistics of 'spatial'"):
            reference.of(measuring.choose("sfid").metric)

    def test_other_features_are_refused_by_what_differs(self, tmp_path):
        self.written(tmp_path / references.FILE)
        reference = references.read(tmp_path)
        reference.check_made_with({"name": "raw_pixels", "preprocessing": "p"})
        with pytest.raises(ValueError, match="preprocessing: p there, q here"):
            reference.check_made_with({"name": "raw_pixels", "preprocessing": "q"})

    def test_what_is_no_reference_says_how_to_make_one(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="--mode=ref_stats"):
            references.read(tmp_path)
        (tmp_path / references.FILE).write_bytes(b"PK no archive")
        with pytest.raises(ValueError, match="is no reference"):
            references.read(tmp_path)


def test_an_extractor_of_your_own_is_gathered_from():
    twice = Extractor("twice", {}, lambda images: {"pool": 2.0 * images.reshape(len(images), -1)})
    gathered = measuring.gather(in_batches(5), twice, features=("pool",))
    np.testing.assert_array_equal(gathered.features["pool"], 2.0 * IMAGES.reshape(23, 16))
