"""The U-Net's residual blocks and attention, in the variants of the papers that grew out of DDPM."""

import math
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion.networks import resample
from diffusion.networks.layers import Conv, Dense, Dtype, GroupNorm, dropped
from diffusion.networks.text import Text

_attention = jax.jit(jax.nn.dot_product_attention)
"""Jitted, so that the layers of one shape are traced once."""


@dataclass(frozen=True)
class Style:
    """What all blocks of a U-Net have in common; `unet` says what the options mean."""

    dtype: Dtype
    dropout: float = 0.0
    separable: bool = False
    scale_shift: bool = False
    skip_rescale: bool = False
    num_heads: int = 1
    head_channels: int | None = None
    resample_filter: resample.Taps = (1.0, 1.0)
    project_resampled: bool = False
    remat: str = "none"

    def joined(self, x: Array, h: Array) -> Array:
        """x + h; divided by sqrt(2) with skip_rescale, which keeps the variance (Song et al. 2020, appendix H)."""
        return (x + h) * math.sqrt(0.5) if self.skip_rescale else x + h

    def heads(self, channels: int) -> int:
        """The number of attention heads at this width."""
        return self.num_heads if self.head_channels is None else channels // self.head_channels


class Block(nn.Module):
    """x + h(x), h = norm, swish, conv, level embedding, norm, swish, dropout, conv (Ho et al. 2020, appendix B).

    The embedding is added before the second norm, or with scale_shift, scales and shifts its result (Nichol & Dhariwal
    2021, section 3: "adaptive group normalization"). resize "down" or "up" halves or doubles both x and h after the
    first swish (BigGAN: Brock et al. 2018, arXiv:1809.11096, appendix B).
    """

    channels: int
    style: Style
    resize: str | None = None

    @nn.compact
    def __call__(self, x: Array, emb: Array, train: bool) -> Array:
        style, dtype = self.style, self.style.dtype
        h = nn.swish(GroupNorm(dtype)(x))
        if self.resize is not None:
            change = {"down": resample.down, "up": resample.up}[self.resize]
            h, x = change(h, style.resample_filter), change(x, style.resample_filter)
        h = self._conv(h)
        told = Dense(self.channels * (1 + style.scale_shift), dtype)(emb)[:, None, None, :]
        if style.scale_shift:
            scale, shift = jnp.split(told, 2, axis=-1)
            h = GroupNorm(dtype)(h) * (1 + scale) + shift
        else:
            h = GroupNorm(dtype)(h + told)
        h = dropped(nn.Dropout(style.dropout, deterministic=not train), nn.swish(h))
        h = self._conv(h, zero=True)
        if x.shape[-1] != self.channels or (style.project_resampled and self.resize is not None):
            x = Dense(self.channels, dtype)(x)
        return style.joined(x, h)

    def _conv(self, x: Array, zero: bool = False) -> Array:
        dtype = self.style.dtype
        if self.style.separable:
            x = Conv(x.shape[-1], dtype, groups=x.shape[-1])(x)
            return Conv(self.channels, dtype, size=1, zero=zero)(x)
        return Conv(self.channels, dtype, zero=zero)(x)


class SelfAttention(nn.Module):
    """Self-attention over the pixels of [batch, h, w, channels], joined to its input (DDPM, appendix B: one head)."""

    style: Style

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return _attended(self.style, x)


class CrossAttention(nn.Module):
    """What the pixels of [batch, h, w, channels] read in a caption, joined to them (Rombach et al. 2022, section 3.3).

    Queries come from the image, keys and values from the text (arXiv:2112.10752). Starts at zero.
    """

    style: Style

    @nn.compact
    def __call__(self, x: Array, text: Text) -> Array:
        return _attended(self.style, x, text)


def _attended(style: Style, x: Array, text: Text | None = None) -> Array:
    """x joined with what its pixels read in each other, or in the text; made of layers of its caller."""
    b, h, w, c = x.shape
    heads = style.heads(c)
    y = GroupNorm(style.dtype)(x).reshape(b, h * w, c)
    read = y if text is None else text.features
    q, k, v = (
        Dense(c, style.dtype, name=name)(of).reshape(b, -1, heads, c // heads)
        for name, of in (("q", y), ("k", read), ("v", read))
    )
    mask = None if text is None else text.mask[:, None, None, :]
    attended = _attention(q, k, v, mask=mask).reshape(b, h * w, c)
    return style.joined(x, Dense(c, style.dtype, zero=True, name="out")(attended).reshape(x.shape))
