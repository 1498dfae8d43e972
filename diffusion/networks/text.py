"""A text encoder: what a caption's bytes mean, for each of them and all together."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from diffusion.networks.layers import Dtype
from diffusion.networks.transformer import Attention, mlp

VOCABULARY = 257
"""The tokens of `data.captions`: 0 behind a caption's end, and the bytes + 1."""


class Text(NamedTuple):
    """Encoded captions.

    features:  [batch, length, channels], zero behind a caption's end.
    mask:      bool [batch, length], where a caption has features; at least at the first place.
    pooled:    [batch, channels], the mean of a caption's features.
    """

    features: Array
    mask: Array
    pooled: Array


def text_encoder(
    text_channels: int, text_blocks: int, text_heads: int, caption_length: int, dtype: Dtype
) -> "TextEncoder":
    """The encoder of captions of up to caption_length tokens; ValueError for options out of range."""
    if min(text_channels, text_blocks, text_heads) < 1 or text_channels % text_heads:
        raise ValueError(
            f"got text_channels={text_channels}, text_blocks={text_blocks}, text_heads={text_heads}; expected at least "
            "1 each, and a number of heads that divides the channels."
        )
    return TextEncoder(text_channels, text_blocks, text_heads, caption_length, dtype)


class TextEncoder(nn.Module):
    """A transformer over a caption's tokens: int [batch, length] -> Text (Vaswani et al. 2017, section 3.1).

    Embeddings of the bytes and of their places are added; then come pre-norm blocks and a last norm. A caption ends
    before its first 0, and nothing behind its end is looked at: more padding changes nothing. A caption without a byte
    keeps its first place, whose 0 has an embedding like any byte: the learned "no caption".

    max_length: the most tokens of a caption; fewer are fine, with the same parameters.
    """

    channels: int
    num_blocks: int
    num_heads: int
    max_length: int
    dtype: Dtype

    @nn.compact
    def __call__(self, tokens: Array) -> Text:
        length = tokens.shape[1]
        if length > self.max_length:
            raise ValueError(f"got captions of {length} tokens, expected at most {self.max_length}.")
        inside = jnp.cumprod((tokens > 0).astype(jnp.int32), axis=1) > 0
        mask = inside.at[:, 0].set(True)
        x = nn.Embed(VOCABULARY, self.channels, dtype=self.dtype, name="bytes")(jnp.where(inside, tokens, 0))
        x += nn.Embed(self.max_length, self.channels, dtype=self.dtype, name="places")(jnp.arange(length))[None]
        for i in range(self.num_blocks):
            x = Block(self.num_heads, self.dtype, name=f"block_{i}")(x, mask)
        features = nn.LayerNorm(dtype=self.dtype, name="norm")(x) * mask[..., None]
        pooled = features.sum(1) / mask.sum(1, keepdims=True).astype(self.dtype)
        return Text(features, mask, pooled)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), on tokens [b, n, c]: "pre-norm".

    As in figure 1b of Xiong et al. 2020, arXiv:2002.04745, but that both branches start at zero. Norms have their
    statistics in float32; the MLP is four times as wide as x.
    """

    num_heads: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        attention = Attention(self.num_heads, self.dtype, zero=True, name="attention")
        x += attention(nn.LayerNorm(dtype=self.dtype, name="attention_norm")(x), mask)
        return x + mlp(nn.LayerNorm(dtype=self.dtype, name="norm")(x), 4 * x.shape[-1], self.dtype, zero=True)
