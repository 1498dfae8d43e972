"""Layers that the networks share. Computation in `dtype`, parameters and normalisation statistics in float32."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Dtype = Any

fan_avg_uniform = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
"""DDPM's initialiser."""
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


def num_groups(channels: int) -> int:
    """The number of groups for group norm: the largest divisor of `channels` up to 32 (DDPM's choice for its widths).

    A group keeps at least 4 channels, as DDPM's do at 128: group norm takes away what is constant over a group,
    so that with one channel each, the level embedding, constant over the pixels, would never be heard.
    """
    return max(g for g in range(1, 33) if channels % g == 0 and channels // g >= min(4, channels))


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018) over [batch, h, w, channels], statistics in float32."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.GroupNorm(num_groups(x.shape[-1]), epsilon=1e-6, dtype=self.dtype)(x)


class Conv(nn.Module):
    """A 3x3 convolution, or the size given; `zero` for a branch that starts at zero."""

    channels: int
    dtype: Dtype
    size: int = 3
    stride: int = 1
    groups: int = 1
    zero: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.Conv(
            self.channels,
            (self.size, self.size),
            self.stride,
            feature_group_count=self.groups,
            dtype=self.dtype,
            kernel_init=zeros if self.zero else fan_avg_uniform,
        )(x)


class Dense(nn.Module):
    """A linear layer on the last axis."""

    channels: int
    dtype: Dtype
    zero: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.Dense(self.channels, dtype=self.dtype, kernel_init=zeros if self.zero else fan_avg_uniform)(x)


class LevelEmbedding(nn.Module):
    """The noise level (and the class label, if there are classes) as one vector of the given width."""

    base: int
    width: int
    num_classes: int
    dtype: Dtype

    @nn.compact
    def __call__(self, noise_cond: Array, cond: Any) -> Array:
        emb = Dense(self.width, self.dtype)(sinusoidal_embedding(noise_cond, self.base))
        emb = Dense(self.width, self.dtype)(nn.swish(emb))
        if self.num_classes:
            emb += nn.Embed(self.num_classes, self.width, dtype=self.dtype)(cond["label"])
        return emb


class SelfAttention(nn.Module):
    """Single-head self-attention over the pixels of [batch, h, w, channels], added to its input (DDPM, appendix B)."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        y = GroupNorm(self.dtype)(x).reshape(b, h * w, c)
        q, k, v = (Dense(c, self.dtype, name=name)(y) for name in "qkv")
        logits = jnp.einsum("bqc,bkc->bqk", q, k, preferred_element_type=jnp.float32) * c**-0.5
        attended = jnp.einsum("bqk,bkc->bqc", jax.nn.softmax(logits).astype(v.dtype), v)
        return x + Dense(c, self.dtype, zero=True, name="out")(attended).reshape(x.shape)
