"""What every metric keeps to, found through lookup."""

import jax
import numpy as np
import pytest

from diffusion import devices, lookup, metrics
from diffusion.metrics.metric import Metric
from diffusion.metrics.moments import statistics

NAMES = sorted(lookup.components(metrics, Metric))
SMALL = {"kernel_distance": {"num_subsets": 6, "subset_size": 50}}
WHOLE = {"kernel_distance": {"num_subsets": 0}}


def made(name, options=SMALL):
    return lookup.make(metrics, Metric, {"name": name, **options.get(name, {})}, block="metric", progress=False)


def measured(metric, generated, reference):
    kept = [statistics(rows) if metric.keeps == "statistics" else rows for rows in (generated, reference)]
    return metric.compute(kept[0], kept[1] if metric.reference else None)


def sets(n=150, m=130, d=12):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, d)).astype(np.float32) + 0.2, 1.1 * rng.normal(size=(m, d)).astype(np.float32)


def test_the_metrics_are_found():
    assert NAMES == ["density_coverage", "frechet", "inception_score", "kernel_distance", "precision_recall"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [SMALL, WHOLE], ids=["small", "whole"])
def test_one_device_gives_what_eight_give(name, options, monkeypatch):
    metric, (generated, reference) = made(name, options), sets()
    eight = measured(metric, generated, reference)
    one_device = devices.Mesh(np.array(jax.devices()[:1]), ("data",))
    monkeypatch.setattr(devices, "data_mesh", lambda: one_device)
    one = measured(metric, generated, reference)
    for number in eight:
        assert one[number] == pytest.approx(eight[number], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_rows_means_nothing(name):
    """Splits and subsets are drawn by place, so these are compared as wholes."""
    metric, (generated, reference) = made(name, WHOLE), sets()
    shuffled = [np.random.default_rng(1).permutation(rows) for rows in (generated, reference)]
    there, here = measured(metric, generated, reference), measured(metric, *shuffled)
    for number in {*here} - {"inception_score", "inception_score_deviation"}:
        assert there[number] == pytest.approx(here[number], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("frechet", "inception_score")])
def test_sets_that_do_not_fit_are_refused(name):
    metric, (generated, reference) = made(name), sets()
    with pytest.raises(ValueError, match="12 features a row and reference 11"):
        metric.compute(generated, reference[:, 1:])
    with pytest.raises(ValueError, match="generated has 2 rows, expected at least"):
        metric.compute(generated[:2], reference)
    reference[7, 3] = np.inf
    with pytest.raises(ValueError, match="reference has values that are not finite in 1 of 130 rows, row 7 first"):
        metric.compute(generated, reference)
    with pytest.raises(ValueError, match=r"reference has the shape \(12,\)"):
        metric.compute(generated, reference[0])


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("frechet", {"reads": "logits"}, "expected 'pool'"),
        ("inception_score", {"num_splits": 0}, "num_splits=0"),
        ("kernel_distance", {"num_subsets": 1}, "num_subsets=1"),
        ("precision_recall", {"k": 0}, "k=0"),
        ("density_coverage", {"k": -1}, "k=-1"),
    ],
)
def test_options_out_of_range_are_refused_when_it_is_made(name, options, words):
    with pytest.raises(ValueError, match=words):
        made(name, {name: options})
