"""Winograd's convolution: a 3x3 layer in a quarter of the multiplications (Lavin & Gray 2015, arXiv:1509.09308).

A convolution multiplies two polynomials, and a product of polynomials can be had from values at enough points:
evaluate both, multiply value by value, interpolate. For a tile of 4 outputs and a kernel of 3 that takes 6
points, hence 36 multiplications for a 4x4 tile and a pair of channels instead of 144, "F(4x4, 3x3)". All that is
done to one side alone (kernel, image, result) is a product with a small constant matrix.

cuDNN chooses such algorithms by itself; XLA's CPU convolution is direct, so on CPUs `layers.Conv` uses this.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion.networks.bilinear import bilinear

TILE, PATCH = 4, 6
_A, _B = 0.75, 1.5
_POINTS = np.array([0, _A, -_A, _B, -_B])  # the sixth is infinity, where a value is the leading coefficient


def _evaluation(size: int) -> np.ndarray:
    """[PATCH, size]: a polynomial's coefficients -> its values at the points."""
    return np.vstack([np.vander(_POINTS, size, increasing=True), np.eye(size)[-1]])


_OTHERS = _POINTS[:, None] - _POINTS + np.eye(len(_POINTS))  # the distances of each point to the other ones
_WEIGHTS = np.append(1 / _OTHERS.prod(1), 1)[:, None]  # Lagrange's, which `_at_points` leaves to the kernel
_OF_KERNEL = np.kron(_WEIGHTS * _evaluation(3), _WEIGHTS * _evaluation(3)).astype(np.float32)
_OF_OUTPUT = np.kron(_evaluation(TILE), _evaluation(TILE)).T.astype(np.float32)


@jax.jit
def winograd_3x3(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "b h w d"]:
    """The 3x3 convolution with stride 1 and zero padding ("SAME"), in a quarter of the multiplications.

    Any h and w; the error is about 1e-6 of the result's standard deviation, 1e-5 at its largest. Jitted, so that a
    network's layers of one shape are traced once, gradient included; XLA inlines them.
    """
    return bilinear(_convolved, _of_image, _of_kernel)(x, kernel)


def _convolved(x: Array, kernel: Array) -> Array:
    products = jnp.einsum("ntc,ncd->ntd", _patches(x), _times(_OF_KERNEL, kernel.reshape(9, *kernel.shape[2:])))
    return _image(products, x.shape)


def _of_image(grad: Array, kernel: Array) -> Array:
    """The gradient of x: grad's convolution with the turned kernel."""
    turned = _times(_OF_KERNEL[:, ::-1], kernel.reshape(9, *kernel.shape[2:]))
    return _image(jnp.einsum("ntd,ncd->ntc", _patches(grad), turned), grad.shape)


def _of_kernel(x: Array, grad: Array) -> Array:
    """The gradient of the kernel, from the same products."""
    products = jnp.einsum("ntc,ntd->ncd", _patches(x), _times(_OF_OUTPUT.T, _tiles(grad)))
    return _times(_OF_KERNEL.T, products).reshape(3, 3, x.shape[-1], grad.shape[-1])


def _times(matrix: np.ndarray, x: Array) -> Any:
    """The matrix [n, k] applied to the leading axis of x [k, ...]."""
    return (jnp.asarray(matrix) @ x.reshape(matrix.shape[1], -1)).reshape(-1, *x.shape[1:])


def _grid(h: int, w: int) -> tuple[int, int]:
    """The number of tiles that cover h and w."""
    return -(-h // TILE), -(-w // TILE)


@jax.jit
def _patches(x: Array) -> Array:
    """[b, h, w, c] -> [36, tiles, c]: the 6x6 patches that overlap by 2, with their side of the product applied.

    Wherever axes are made one, the batch comes first, so that a batch split over devices stays split.
    """
    b, h, w, c = x.shape
    rows, cols = _grid(h, w)
    x = jnp.pad(x, ((0, 0), (1, rows * TILE - h + 1), (1, cols * TILE - w + 1), (0, 0)))
    x = jnp.stack(_at_points([x[:, i : i + (rows - 1) * TILE + 1 : TILE] for i in range(PATCH)]))
    x = jnp.stack(_at_points([x[:, :, :, i : i + (cols - 1) * TILE + 1 : TILE] for i in range(PATCH)]), 1)
    return x.reshape(PATCH**2, b * rows * cols, c)


def _at_points(x: list[Array]) -> list[Array]:
    """The patch's side of the product along one axis: for each point the sum of c_i x_i, x_i being the i-th pixels.

    The c_i are the coefficients of the polynomial that vanishes at all other points, prod (z - q). Written as sums, two
    points of opposite signs share theirs: less time than a product with copies of the overlapping patches.
    """
    a, b = _A**2, _B**2
    even_a, odd_a = x[4] - b * x[2], _A * (x[3] - b * x[1])
    even_b, odd_b = x[4] - a * x[2], _B * (x[3] - a * x[1])
    zero, infinity = (a * b * x[i] - (a + b) * x[i + 2] + x[i + 4] for i in range(2))
    return [zero, even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, infinity]


def _tiles(x: Array) -> Array:
    """[b, h, w, c] -> [16, tiles, c]: the 4x4 tiles, zeros beyond the edge."""
    b, h, w, c = x.shape
    rows, cols = _grid(h, w)
    x = jnp.pad(x, ((0, 0), (0, rows * TILE - h), (0, cols * TILE - w), (0, 0)))
    return x.reshape(b, rows, TILE, cols, TILE, c).transpose(2, 4, 0, 1, 3, 5).reshape(TILE**2, b * rows * cols, c)


def _image(products: Array, shape: tuple[int, ...]) -> Array:
    """[36, tiles, d] -> [b, h, w, d], with the result's side of the product applied; shape is (b, h, w, ...)."""
    b, h, w = shape[:3]
    rows, cols = _grid(h, w)
    x = _times(_OF_OUTPUT, products).reshape(TILE, TILE, b, rows, cols, -1).transpose(2, 3, 0, 4, 1, 5)
    return x.reshape(b, rows * TILE, cols * TILE, -1)[:, :h, :w]
