"""Layers that the networks share. Computation in `dtype`, parameters and normalisation statistics in float32."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion.networks.convolution import convolve

Dtype = Any

fan_avg_uniform = jax.jit(nn.initializers.variance_scaling(1.0, "fan_avg", "uniform"), static_argnums=(1, 2))
"""DDPM's initialiser. Jitted, as Linen traces it at every call of a layer, to compare shapes."""
zeros = nn.initializers.zeros
"""For the last layer of each residual branch, which then starts as the identity (DDPM uses scale 1e-10)."""


def sinusoidal_embedding(t: Float[Array, " batch"], width: int) -> Float[Array, "batch width"]:
    """[sin(t f_i), cos(t f_i)] at frequencies from 1 down to 1e-4, geometrically (Vaswani et al. 2017, section 3.5).

    t is expected in steps (1..1000), not in [0, 1]; an odd width gets a zero at its end.
    """
    half = width // 2
    frequencies = jnp.exp(-jnp.log(10_000.0) * jnp.arange(half) / max(half - 1, 1))
    angles = t[:, None] * frequencies[None, :]
    return jnp.pad(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1), ((0, 0), (0, width - 2 * half)))


def fourier_features(noise_cond: Float[Array, " batch"], width: int, scale: float) -> Float[Array, "batch width"]:
    """[sin(2 pi c f_i), cos(2 pi c f_i)], the f_i spread as N(0, scale^2) (Tancik et al. 2020, arXiv:2006.10739).

    NCSN++ draws its frequencies (Song et al. 2020, appendix H: scale 16, c = ln sigma); here they are quantiles of the
    same distribution, so that nothing random has to be stored, and positive, as -f would repeat the features of f.
    For c of order 1.
    """
    places = (jnp.arange(width // 2) + 0.5) / (width // 2)
    angles = 2 * jnp.pi * noise_cond[:, None] * (scale * jax.scipy.special.ndtri((1 + places) / 2))[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


def num_groups(channels: int) -> int:
    """The number of groups for group norm: the largest divisor of `channels` up to 32 (DDPM's choice for its widths).

    A group keeps at least 4 channels, as DDPM's do at 128: group norm takes away what is constant over a group,
    so that with one channel each, the level embedding, constant over the pixels, would never be heard.
    """
    return max(g for g in range(1, 33) if channels % g == 0 and channels // g >= min(4, channels))


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018) over [batch, h, w, channels], statistics in float32.

    Sums are taken per channel before they are taken per group, so that the long loops run along the memory's
    innermost axis, and what is left for each pixel is one multiplication and one addition: faster on CPUs than
    the textbook order, and to rounding the same.
    """

    dtype: Dtype
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", zeros, (channels,))
        return _group_normalised(x, scale, bias, self.epsilon).astype(self.dtype)


@functools.partial(jax.jit, static_argnums=3)  # the layers of one shape are traced once
def _group_normalised(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """The normalised x times scale plus bias, in float32."""
    x = x.astype(jnp.float32)
    mean, square = _over_group(x.mean((1, 2))), _over_group(jnp.square(x).mean((1, 2)))
    factor = scale[None] * jax.lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0) + epsilon)
    shift = bias[None] - mean * factor
    return x * factor[:, None, None] + shift[:, None, None]


def _over_group(per_channel: Array) -> Array:
    """[batch, channels] -> the same shape, each value replaced by the mean of its group's."""
    batch, channels = per_channel.shape
    groups = num_groups(channels)
    return jnp.repeat(per_channel.reshape(batch, groups, -1).mean(-1), channels // groups, axis=1)


class Conv(nn.Module):
    """A 3x3 convolution, or the size given; `zero` for a branch that starts at zero."""

    channels: int
    dtype: Dtype
    size: int = 3
    stride: int = 1
    groups: int = 1
    zero: bool = False
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.Conv(
            self.channels,
            (self.size, self.size),
            self.stride,
            self.padding,
            feature_group_count=self.groups,
            dtype=self.dtype,
            kernel_init=zeros if self.zero else fan_avg_uniform,
            conv_general_dilated=convolve,
        )(x)


class Dense(nn.Module):
    """A linear layer on the last axis."""

    channels: int
    dtype: Dtype
    zero: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.Dense(self.channels, dtype=self.dtype, kernel_init=zeros if self.zero else fan_avg_uniform)(x)


def dropped(dropout: nn.Dropout, x: Array) -> Array:
    """dropout(x), the mask drawn as one long row: the same bits, and less for CPUs to compile."""
    return dropout(x.reshape(-1)).reshape(x.shape)


def with_estimate(x: Array, cond: Any) -> Array:
    """x with the network's own last estimate as further channels, where cond has one (self-conditioning)."""
    return jnp.concatenate([x, cond["x_0_hat"]], axis=-1) if "x_0_hat" in cond else x


class LevelEmbedding(nn.Module):
    """The noise level (and the class label, if num_labels is above 0) as one vector of the given width.

    pooled: a caption's vector [batch, channels], of which a linear map is added, zero at the start; None for no text.

    base: width of the sinusoidal embedding; fourier_scale: Fourier features of twice that width instead.
    If cond has an "augment_label", a linear map of it is added to the sinusoidal embedding (Karras et al. 2022,
    arXiv:2206.00364, appendix F.2): a label of zero adds nothing.
    """

    base: int
    width: int
    num_labels: int
    dtype: Dtype
    fourier_scale: float | None = None

    @nn.compact
    def __call__(self, noise_cond: Array, cond: Any, pooled: Array | None = None) -> Array:
        if self.fourier_scale is None:
            features = sinusoidal_embedding(noise_cond, self.base)
        else:
            features = fourier_features(noise_cond, 2 * self.base, self.fourier_scale)
        if "augment_label" in cond:
            told = nn.Dense(features.shape[-1], False, self.dtype, kernel_init=fan_avg_uniform, name="augment")
            features += told(cond["augment_label"])
        emb = Dense(self.width, self.dtype)(features)
        emb = Dense(self.width, self.dtype)(nn.swish(emb))
        if self.num_labels:
            emb += nn.Embed(self.num_labels, self.width, dtype=self.dtype)(cond["label"])
        if pooled is not None:
            emb += Dense(self.width, self.dtype, zero=True, name="text")(pooled)
        return emb
