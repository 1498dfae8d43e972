"""Augmentation: what was done to an image is what its label says, and no more."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion.augment import LABEL_WIDTH, geometric

KEY = jax.random.key(3)
augmented = jax.jit(geometric, static_argnames="p")
labels_of = jax.jit(lambda key, p: geometric(key, jnp.zeros((20_000, 2, 2, 1)), p)[1], static_argnames="p")


def noise(*shape):
    return jax.random.uniform(jax.random.key(1), shape, minval=-1, maxval=1)


def as_seen(angle):
    """The matrix that turns (x, y), y pointing down, counter-clockwise as seen."""
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def maps(label, h, w):
    """The affine maps (matrix, shift) of (x, y) about the centre that a label may stand for, in float64.

    Two where the axis of the stretch was turned, of which the label keeps w (cos r, sin r) alone.
    """
    mirror_x, mirror_y, scale, cos, sin, stretch_x, stretch_y, right, down = np.asarray(label, np.float64)
    before = as_seen(np.arctan2(sin, cos + 1)) @ np.diag([1 - 2 * mirror_x, 1 - 2 * mirror_y]) * 2 ** (0.2 * scale)
    size, axis = np.hypot(stretch_x, stretch_y), np.arctan2(stretch_y, stretch_x)
    options = [(stretch_x, 0.0)] if stretch_y == 0 else [(size, axis), (-size, axis + np.pi)]
    for stretch, r in options:
        stretched = as_seen(r) @ np.diag([2 ** (0.2 * stretch), 2 ** (-0.2 * stretch)]) @ as_seen(-r)
        yield stretched @ before, 0.125 * np.array([right * w, down * h])


def waves(x, y, h, w):
    """[..., 3] at (x, y) from the centre: these cosines go on beyond the edges just as their mirror images do."""
    u, v = np.pi * (x / w + 0.5), np.pi * (y / h + 0.5)
    return 0.9 * np.stack([np.cos(u), np.cos(v), np.cos(u) * np.cos(2 * v)], axis=-1)


@pytest.mark.parametrize(("h", "w"), [(32, 32), (28, 48)])
def test_every_pixel_shows_what_the_labels_affine_map_brings_there(h, w):
    """The whole pipeline, beyond the edges too, against the closed form: image'(A p + s) = image(p)."""
    y, x = np.mgrid[:h, :w] - np.array([(h - 1) / 2, (w - 1) / 2])[:, None, None]
    images = jnp.asarray(np.broadcast_to(waves(x, y, h, w), (256, h, w, 3)), jnp.float32)
    out, labels = augmented(KEY, images, p=0.5)
    errors, turned = [], 0
    for image, label in zip(out, labels, strict=True):
        candidates = []
        for matrix, shift in maps(label, h, w):
            origin = np.linalg.inv(matrix) @ np.stack([x - shift[0], y - shift[1]]).reshape(2, -1)
            candidates.append(np.abs(waves(*origin.reshape(2, h, w), h, w) - image).max())
        turned += len(candidates) == 2 and np.argmin(candidates)
        errors.append(min(candidates))
    assert np.max(errors) < 0.02
    assert 12 <= turned <= 52, "of 64 turned stretches, half have w < 0"


def test_nothing_but_mirroring_is_exact():
    images = noise(64, 6, 10, 3)
    out, labels = augmented(KEY, images, p=0.0)
    mirrored = np.asarray(labels[:, 0] == 1)
    assert 10 < mirrored.sum() < 54
    np.testing.assert_array_equal(labels, np.where(mirrored, 1, 0)[:, None] * np.eye(LABEL_WIDTH)[0])
    images = np.asarray(images)
    np.testing.assert_array_equal(out, np.where(mirrored[:, None, None, None], images[:, :, ::-1], images))


def test_an_image_is_untouched_bit_for_bit_where_its_label_is_zero_and_nowhere_else():
    images = noise(512, 6, 10, 1)
    out, labels = augmented(KEY, images, p=0.15)
    images, out, labels = (np.asarray(rows) for rows in (images, out, labels))
    untouched, zero = (out == images).all((1, 2, 3)), ~labels.any(1)
    np.testing.assert_array_equal(untouched, zero)
    assert 50 < zero.sum() < 250
    upside_down = (labels == np.eye(LABEL_WIDTH)[1]).all(1)
    assert upside_down.any()
    np.testing.assert_array_equal(out[upside_down], images[upside_down, ::-1])
    assert labels.dtype == np.float32


@pytest.mark.parametrize("p", [0.12, 1.0])
def test_every_transform_comes_as_often_as_it_should_and_alone(p):
    n, labels = 20_000, np.asarray(labels_of(KEY, p))
    happened = labels[:, [0, 1, 2, 4, 5, 6, 7]] != 0
    shares = np.array([0.5, p / 2, p, p, p, p / 2, p])
    np.testing.assert_array_less(np.abs(happened.mean(0) - shares), 5 * np.sqrt(shares * (1 - shares) / n) + 1e-12)
    np.testing.assert_array_equal(happened[:, 6], labels[:, 8] != 0, "one coin for both shifts")
    for i, j in [(0, 1), (0, 2), (1, 2), (2, 3), (2, 4), (3, 4), (4, 6), (3, 6), (2, 6)]:
        both = shares[i] * shares[j]
        assert abs((happened[:, i] & happened[:, j]).mean() - both) <= 5 * np.sqrt(both * (1 - both) / n), (i, j)


def test_the_sizes_of_the_moves_have_their_distributions():
    """At p = 1; Kolmogorov-Smirnov with 1 in 10,000 for each, at a fixed key."""
    labels = np.asarray(labels_of(KEY, 1.0)[:5000], np.float64)
    assert set(labels[:, 0]) == set(labels[:, 1]) == {0, 1}
    straight, turned = labels[labels[:, 6] == 0], labels[labels[:, 6] != 0]
    drawn = {
        "scale": (labels[:, 2], stats.norm),
        "angle": (np.arctan2(labels[:, 4], labels[:, 3] + 1), stats.uniform(-np.pi, 2 * np.pi)),
        "stretch": (straight[:, 5], stats.norm),
        "turned stretch": (np.hypot(turned[:, 5], turned[:, 6]), stats.halfnorm),
        "axis": (np.arctan2(turned[:, 6], turned[:, 5]), stats.uniform(-np.pi, 2 * np.pi)),
        "right": (labels[:, 7], stats.norm),
        "down": (labels[:, 8], stats.norm),
        "right and down": ((labels[:, 7] + labels[:, 8]) / np.sqrt(2), stats.norm),
    }
    for name, (values, expected) in drawn.items():
        assert stats.kstest(values, expected.cdf).pvalue > 1e-4, name
    np.testing.assert_allclose(np.hypot(labels[:, 3] + 1, labels[:, 4]), 1, rtol=1e-5)


@pytest.mark.parametrize("shape", [(8, 8, 1), (7, 4, 2), (1, 1, 1)])
def test_constant_images_stay_constant_and_every_image_stays_in_range(shape):
    out, labels = augmented(KEY, np.full((256, *shape), 0.7, np.float32), p=1.0)
    np.testing.assert_allclose(out, 0.7, atol=1e-5)
    assert np.asarray(labels)[:, 2:].any(1).all()
    out, _ = augmented(KEY, np.sign(np.random.default_rng(0).normal(size=(256, *shape))).astype(np.float32), p=1.0)
    assert np.abs(out).max() <= 1, "not a number would fail here too"


def test_the_key_decides_and_samples_do_not_see_each_other():
    images = noise(16, 8, 8, 3)
    first, again, other = (augmented(key, images, p=1.0) for key in (KEY, KEY, jax.random.key(4)))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (jnp.abs(first[0] - other[0]).max((1, 2, 3)) > 1e-3).all()
    changed = augmented(KEY, images.at[5].set(-images[5]), p=1.0)
    np.testing.assert_array_equal((changed[0] != first[0]).any((1, 2, 3)), np.arange(16) == 5)
    np.testing.assert_array_equal(changed[1], first[1])
