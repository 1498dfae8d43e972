"""Halving and doubling keep what is linear where it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.networks import layers, resample
from diffusion.networks.layers import Conv

blur, down, up = (jax.jit(f, static_argnums=1) for f in (resample.blur, resample.down, resample.up))
fourier_features = jax.jit(layers.fourier_features, static_argnums=1, static_argnames="scale")
TAPS = [(1.0, 1.0), (1.0, 3.0, 3.0, 1.0)]


def ramp(h, w):
    """An image whose pixels know where they are: channel 0 the row, channel 1 the column."""
    return np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), -1)[None].astype(np.float32)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def inside(x, edge=2):
    return np.asarray(x[:, edge:-edge, edge:-edge])


@pytest.mark.parametrize("taps", TAPS)
def test_halves_lie_between_their_two_pixels(taps):
    np.testing.assert_allclose(inside(down(ramp(16, 12), taps)), inside(2 * ramp(8, 6) + 0.5), atol=1e-5)


@pytest.mark.parametrize("taps", TAPS)
def test_doubles_keep_constants_and_mirror_halving(taps):
    np.testing.assert_allclose(inside(up(np.full((2, 4, 3, 3), 2.5, np.float32), taps)), 2.5, rtol=1e-6)
    x, y = normal(0, 2, 8, 6, 3), normal(1, 2, 4, 3, 3)
    np.testing.assert_allclose(np.sum(down(x, taps) * y), np.sum(x * up(y, taps)) / 4, rtol=1e-4)  # adjoint, but for 4


def test_the_short_filter_averages_and_repeats():
    x = normal(0, 2, 4, 6, 3)
    np.testing.assert_allclose(down(x, (1.0, 1.0)), x.reshape(2, 2, 2, 3, 2, 3).mean((2, 4)), atol=1e-6)
    np.testing.assert_allclose(up(x, (1.0, 1.0)), x.repeat(2, axis=1).repeat(2, axis=2), atol=1e-6)


def test_the_long_filter_doubles_linearly():
    np.testing.assert_allclose(
        inside(up(ramp(8, 6), (1.0, 3.0, 3.0, 1.0))), inside((ramp(16, 12) - 0.5) / 2), atol=1e-5
    )


@pytest.mark.parametrize("taps", TAPS)
def test_a_blurred_image_lies_half_a_pixel_off_on_both_sides(taps):
    blurred = blur(ramp(8, 6), taps)
    assert blurred.shape == (1, 9, 7, 2)
    np.testing.assert_allclose(inside(blurred), inside(ramp(9, 7) - 0.5), atol=1e-5)


def test_the_pyramid_treats_mirrored_images_alike():
    """Blurred, and convolved with stride 2 by a symmetric kernel: edges included."""
    x = jnp.asarray(normal(0, 1, 8, 6, 3))
    layer = Conv(4, jnp.float32, stride=2, padding="VALID")
    params = jax.tree.map(lambda k: k + jnp.flip(k, (0, 1)) if k.ndim == 4 else k, layer.init(jax.random.key(1), x))
    half = jax.jit(lambda x: layer.apply(params, blur(x, (1.0, 3.0, 3.0, 1.0))))
    assert half(x).shape == (1, 4, 3, 4)
    np.testing.assert_allclose(half(x[:, ::-1, ::-1]), half(x)[:, ::-1, ::-1], atol=1e-5)


def test_fourier_features_have_the_gaussian_kernel():
    """Their inner products are exp(-(2 pi scale d)^2 / 2) for levels at the distance d (Rahimi & Recht 2007)."""
    d = np.linspace(0, 0.4, 9)
    features = np.asarray(fourier_features(np.float32(np.append(d, 0.0) + 0.7), 4096, scale=1.0))
    kernel = features[:-1] @ features[-1] / 2048
    np.testing.assert_allclose(kernel, np.exp(-((2 * np.pi * d) ** 2) / 2), atol=2e-3)


def test_no_fourier_feature_repeats_another():
    features = fourier_features(np.linspace(-16, 16, 500, dtype=np.float32), 64, scale=4.0)
    assert np.linalg.matrix_rank(np.asarray(features, np.float64), tol=1e-3) == 64
