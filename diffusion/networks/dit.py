"""The Diffusion Transformer with adaLN-Zero (Peebles & Xie 2022, arXiv:2212.09748, section 3 and figure 3)."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion.networks.layers import Dense, Dtype, LevelEmbedding, dropped, with_estimate
from diffusion.networks.network import Inputs, Network, check_dropout, from_linen, near_sizes, one_of
from diffusion.networks.remat import check as check_remat
from diffusion.networks.remat import rematted
from diffusion.networks.transformer import Attention, mlp

LEVEL_WIDTH = 256
"""The width of the sinusoidal embedding of the level (the official code's choice)."""


def dit(
    shape: tuple[int, ...],
    patch_size: int = 2,
    channels: int = 384,
    num_blocks: int = 12,
    num_heads: int = 6,
    mlp_ratio: float = 4.0,
    dropout: float = 0.0,
    class_conditional: bool = False,
    dtype: str = "float32",
    remat: str = "none",
    inputs: Inputs = Inputs(),
) -> Network:
    """DiT with adaLN-Zero blocks; the defaults are DiT-S/2 (Peebles & Xie 2022, table 1).

    The paper's other sizes as (channels, num_blocks, num_heads): B (768, 12, 12), L (1024, 24, 16), XL (1152, 28, 16).

    shape:          one image's (h, w, c). h and w must be multiples of patch_size; they may differ.
    patch_size:     the side p of a patch. A patch is one token, so that there are h w / p^2 tokens.
    channels:       the width of every token; a multiple of num_heads, and of 4 for the position table.
    num_blocks:     transformer blocks, each an attention and an MLP; num_heads: heads of each attention.
    mlp_ratio:      the hidden width of each MLP is int(mlp_ratio * channels).
    dropout:        on the outputs of both branches of a block, in [0, 1); the paper has none.
    class_conditional:  reads cond["label"] (int [batch]) and adds its embedding to the level's.
    dtype:          of the computation, "float32" or "bfloat16"; parameters, the statistics of layer norm, the logits
                    of attention and the output stay float32.
    remat:          what is computed again on the way back instead of being remembered: "none"; "elementwise", all
                    but products of matrices; "block", all that is inside a block.
    inputs:         facts of the data set and of the training, see `network.Inputs`. An estimate joins x as further
                    channels, labels and the augmentation's label join the level.

    The second half of the output, for the variance, is there only where one is learned (`Inputs.outputs`). The
    level's and the class's embeddings are `layers.LevelEmbedding`, whose initial scale is that of the other networks.

    ValueError for a shape that is no image or does not divide into patches, and for options out of range.
    """
    _check_shape(shape, patch_size)
    _check_widths(channels, num_blocks, num_heads, mlp_ratio)
    check_dropout(dropout)
    example = inputs.example(shape, class_conditional)
    module = DiT(
        patch_size=patch_size,
        channels=channels,
        num_blocks=num_blocks,
        num_heads=num_heads,
        mlp_channels=int(mlp_ratio * channels),
        dropout=dropout,
        num_labels=inputs.num_labels(class_conditional),
        outputs=inputs.outputs,
        dtype=jnp.dtype(one_of("dtype", dtype, ("float32", "bfloat16"))),
        remat=check_remat(remat),
    )
    return from_linen(module, shape, example)


def _check_shape(shape: tuple[int, ...], patch_size: int) -> None:
    if len(shape) != 3:
        raise ValueError(f"DiT takes images (h, w, c), got samples of shape {shape}. For points, use network.name=mlp.")
    if patch_size < 1:
        raise ValueError(f"got patch_size={patch_size}, expected at least 1.")
    if shape[0] % patch_size or shape[1] % patch_size:
        raise ValueError(
            f"images of {shape[0]}x{shape[1]} do not divide into patches of {patch_size}x{patch_size}: height and "
            f"width must be multiples of {patch_size}, such as {near_sizes(shape, patch_size)}. "
            "Resize the images or choose another patch_size."
        )


def _check_widths(channels: int, num_blocks: int, num_heads: int, mlp_ratio: float) -> None:
    if channels < 4 or channels % 4:
        raise ValueError(
            f"got channels={channels}, expected a multiple of 4: the position table gives a quarter of the channels "
            "each to the sine and the cosine of the column and of the row."
        )
    if num_blocks < 1 or num_heads < 1 or int(mlp_ratio * channels) < 1:
        raise ValueError(
            f"got num_blocks={num_blocks}, num_heads={num_heads}, mlp_ratio={mlp_ratio}; "
            "expected num_blocks >= 1, num_heads >= 1 and an MLP of at least one channel."
        )
    if channels % num_heads:
        raise ValueError(
            f"got channels={channels} and num_heads={num_heads}, expected a number of heads that divides it."
        )


def position_table(rows: int, columns: int, channels: int) -> Float[np.ndarray, "tokens channels"]:
    """[sin(j f), cos(j f), sin(i f), cos(i f)] of the token at row i and column j, row by row; float32.

    The four parts have channels / 4 frequencies each, f_k = 10000^(-k / (channels / 4)). This is the sine-cosine
    encoding of Vaswani et al. 2017, section 3.5, for two axes, the column first as in DiT's official code. It is fixed,
    not a parameter, and computed in float64.
    """
    quarter = channels // 4
    frequencies = 10_000.0 ** (-np.arange(quarter) / quarter)
    i, j = (index.reshape(-1, 1) * frequencies for index in np.indices((rows, columns)))
    return np.concatenate([np.sin(j), np.cos(j), np.sin(i), np.cos(i)], axis=1).astype(np.float32)


def patchify(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b tokens patch"]:
    """The patches of size x size pixels as vectors, row by row; within a patch: row, column, channel."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // size, size, w // size, size, c).swapaxes(2, 3)
    return x.reshape(b, (h // size) * (w // size), size * size * c)


def unpatchify(x: Float[Array, "b tokens patch"], size: int, h: int, w: int) -> Float[Array, "b h w c"]:
    """The image of h x w pixels whose patches are x: the inverse of `patchify`."""
    x = x.reshape(x.shape[0], h // size, w // size, size, size, -1).swapaxes(2, 3)
    return x.reshape(x.shape[0], h, w, -1)


class DiT(nn.Module):
    """See `dit`."""

    patch_size: int
    channels: int
    num_blocks: int
    num_heads: int
    mlp_channels: int
    dropout: float
    num_labels: int
    dtype: Dtype
    outputs: int = 1
    remat: str = "none"

    @nn.compact
    def __call__(self, x: Array, noise_cond: Array, cond: Any, train: bool) -> Array:
        _, h, w, channels = x.shape
        x = with_estimate(x, cond)
        level = LevelEmbedding(LEVEL_WIDTH, self.channels, self.num_labels, self.dtype, name="level")
        emb = nn.swish(level(noise_cond, cond))
        table = position_table(h // self.patch_size, w // self.patch_size, self.channels)
        x = Dense(self.channels, self.dtype, name="patches")(patchify(x, self.patch_size).astype(self.dtype))
        x += jnp.asarray(table, self.dtype)[None]
        made = rematted(Block, self.remat, train_at=3)
        for i in range(self.num_blocks):
            block = made(self.num_heads, self.mlp_channels, self.dropout, self.dtype, name=f"block_{i}")
            x = block(x, emb, train)
        shift, scale = _modulation(2, self.channels, self.dtype, emb)
        x = _modulated_norm(x, shift, scale).astype(jnp.float32)
        out = Dense(self.patch_size**2 * self.outputs * channels, jnp.float32, zero=True, name="out")(x)
        return unpatchify(out, self.patch_size, h, w)


class Block(nn.Module):
    """x + gate * attention(norm(x)), then x + gate * mlp(norm(x)), on tokens [b, n, c] (figure 3, "adaLN-Zero").

    The shift, scale and gate of both branches are a linear function of the embedding [b, c], which starts at zero:
    the block starts as the identity.
    """

    num_heads: int
    mlp_channels: int
    dropout: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array, emb: Array, train: bool) -> Array:
        channels = x.shape[-1]
        drop = functools.partial(dropped, nn.Dropout(self.dropout, deterministic=not train))
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = _modulation(6, channels, self.dtype, emb)
        attention = Attention(self.num_heads, self.dtype, name="attention")
        x += gate * drop(attention(_modulated_norm(x, shift, scale)))
        return x + mlp_gate * drop(mlp(_modulated_norm(x, mlp_shift, mlp_scale), self.mlp_channels, self.dtype))


def _modulation(parts: int, channels: int, dtype: Dtype, emb: Array) -> list[Array]:
    """So many vectors [b, 1, channels], linear in the embedding and zero at the start; a layer of its caller."""
    vectors = Dense(parts * channels, dtype, zero=True, name="modulation")(emb)
    return jnp.split(vectors[:, None], parts, axis=-1)


def _modulated_norm(x: Array, shift: Array, scale: Array) -> Array:
    """(1 + scale) norm(x) + shift; layer norm without parameters of its own, statistics in float32."""
    norm = nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False, dtype=x.dtype)
    return norm(x) * (1 + scale) + shift
