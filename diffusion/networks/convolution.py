"""The convolution of `layers.Conv`: XLA's own, or on CPUs the form or the algorithm that is the faster there."""

import functools
from typing import Any

import jax
from jax import lax
from jaxtyping import Array, Float

from diffusion.networks.bilinear import bilinear
from diffusion.networks.winograd import winograd_3x3

Pads = tuple[tuple[int, int], ...]

_NHWC = ("NHWC", "HWIO", "NHWC")


def convolve(x: Array, kernel: Array, strides: Any, padding: Any, **options: Any) -> Array:
    """`lax.conv_general_dilated` as `nn.Conv` calls it, on CPUs by `winograd_3x3` or `direct` where they can.

    cuDNN chooses among algorithms by itself; XLA's CPU convolution has only the direct one. Winograd's is for wide 3x3
    layers: too few channels, and the transforms of the image cost more than the products save; too many for so few
    pixels, and those of the kernel do. The choice does not look at the batch size, so a sample stays the same in every
    batch.
    """
    if jax.default_backend() != "cpu" or options["feature_group_count"] > 1 or _dilated(options):
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)
    plain = kernel.shape[:2] == (3, 3) and set(strides) == {1} and padding == "SAME"
    pays = 64 <= min(kernel.shape[2:]) <= 4 * x.shape[1] * x.shape[2]
    if plain and pays and x.dtype == "float32":
        return winograd_3x3(x, kernel)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:-1], kernel.shape[:2], strides, padding)
    return direct(x, kernel, tuple(strides), tuple(map(tuple, padding)))


def _dilated(options: Any) -> bool:
    return {*options["lhs_dilation"], *options["rhs_dilation"]} != {1}


@functools.partial(jax.jit, static_argnums=(2, 3))  # the layers of one shape are traced once
def direct(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k l c d"], strides: tuple[int, int], pads: Pads
) -> Float[Array, "b i j d"]:
    """`lax.conv_general_dilated`, with gradients that keep their speed in loops on CPUs; the same bits.

    XLA's library for CPUs takes a convolution whose axes lie as [batch, h, w, channels] and [h, w, in, out]. Those of a
    gradient lie otherwise, and XLA turns them, but outside of loops only; in the body of a scan a loop of its own
    takes many times as long (jax issue 12868). So here they are turned before.
    """
    return bilinear(
        lambda x, kernel: lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=_NHWC),
        lambda grad, kernel: _of_image(grad, kernel, x.shape, strides, pads),
        lambda x, grad: _of_kernel(x, grad, kernel.shape, strides, pads),
    )(x, kernel)


def _of_image(grad: Array, kernel: Array, shape: tuple[int, ...], strides: tuple[int, int], pads: Pads) -> Array:
    """The gradient of the image [b, h, w, c]: grad, its pixels `strides` apart, with the turned kernel."""
    widths = []
    for size, out, k, stride, (low, _) in zip(shape[1:3], grad.shape[1:3], kernel.shape, strides, pads, strict=False):
        widths.append((k - 1 - low, size - 1 + low - (out - 1) * stride))
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    return lax.conv_general_dilated(grad, turned, (1, 1), widths, lhs_dilation=strides, dimension_numbers=_NHWC)


def _of_kernel(x: Array, grad: Array, shape: tuple[int, ...], strides: tuple[int, int], pads: Pads) -> Array:
    """The gradient of the kernel [k, l, c, d]: the image with grad as kernel, channels and batch in turned roles."""
    widths = []
    for size, out, k, stride, (low, _) in zip(x.shape[1:3], grad.shape[1:3], shape, strides, pads, strict=False):
        widths.append((low, k + (out - 1) * stride - size - low))
    image, places = x.transpose(3, 1, 2, 0), grad.transpose(1, 2, 0, 3)
    of_kernel = lax.conv_general_dilated(image, places, (1, 1), widths, rhs_dilation=strides, dimension_numbers=_NHWC)
    return of_kernel.transpose(1, 2, 0, 3)
