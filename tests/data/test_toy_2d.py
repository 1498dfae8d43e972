import numpy as np
import pytest

from diffusion.data.pipeline import batches, epoch
from diffusion.data.toy_2d import toy_2d


def points(split="train", **options):
    (batch,) = epoch(toy_2d(split, **options), batch_size=10**6)
    return batch


@pytest.mark.parametrize(("kind", "classes"), [("mixture", 8), ("two_moons", 2), ("swiss_roll", 0)])
def test_points_lie_in_the_square_and_come_back_the_same(kind, classes):
    first, again, test = points(kind=kind), points(kind=kind), points("test", kind=kind)
    np.testing.assert_array_equal(first["image"], again["image"])
    assert np.abs(first["image"][:100] - test["image"][:100]).max() > 0.1
    assert np.abs(first["image"]).max() <= 1
    assert (first["image"].dtype, first["image"].shape) == (np.float32, (20_000, 2))
    assert len(toy_2d(kind=kind).class_names) == classes
    assert ("label" in first) == (classes > 0)


def test_the_mixture_is_eight_gaussians_at_their_labels():
    batch = points(kind="mixture", noise=0.04)
    for label in range(8):
        own = batch["image"][batch["label"] == label]
        centre = 0.7 * np.array([np.cos(label * np.pi / 4), np.sin(label * np.pi / 4)])
        np.testing.assert_allclose(own.mean(0), centre, atol=0.004)
        np.testing.assert_allclose(own.std(0), 0.04, rtol=0.1)


def test_errors():
    with pytest.raises(ValueError, match="expected one of: mixture, two_moons, swiss_roll"):
        toy_2d(kind="spiral")
    with pytest.raises(ValueError, match="got num_points=0"):
        toy_2d(num_points=0)
    with pytest.raises(ValueError, match=r"a sample has the shape \(2,\); leave flip out"):
        batches(toy_2d(), batch_size=4, seed=0, flip=True)
