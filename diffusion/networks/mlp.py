"""A residual multilayer perceptron for points (2-D toy data)."""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from diffusion.networks.layers import Dense, LevelEmbedding, with_estimate
from diffusion.networks.network import Inputs, Network, check_dropout, from_linen


def mlp(
    shape: tuple[int, ...],
    channels: int = 128,
    num_blocks: int = 3,
    dropout: float = 0.0,
    class_conditional: bool = False,
    inputs: Inputs = Inputs(),
) -> Network:
    """A residual MLP over flattened samples of any shape, told the level in every block.

    channels: width of the residual stream; num_blocks: residual blocks; the other arguments as in `unet`.
    """
    if channels < 2 or num_blocks < 1:
        raise ValueError(f"got channels={channels}, num_blocks={num_blocks}; expected at least 2 and 1.")
    check_dropout(dropout)
    example = inputs.example(shape, class_conditional)
    module = MLP(channels, num_blocks, dropout, inputs.num_labels(class_conditional), inputs.outputs)
    return from_linen(module, shape, example)


class MLP(nn.Module):
    """See `mlp`."""

    channels: int
    num_blocks: int
    dropout: float
    num_labels: int
    outputs: int = 1

    @nn.compact
    def __call__(self, x: Array, noise_cond: Array, cond: Any, train: bool) -> Array:
        shape = x.shape
        x = with_estimate(x, cond)
        emb = nn.swish(LevelEmbedding(self.channels, self.channels, self.num_labels, jnp.float32)(noise_cond, cond))
        x = Dense(self.channels, jnp.float32)(x.reshape(shape[0], -1))
        for _ in range(self.num_blocks):
            h = Dense(self.channels, jnp.float32)(nn.swish(nn.LayerNorm()(x))) + Dense(self.channels, jnp.float32)(emb)
            h = nn.Dropout(self.dropout, deterministic=not train)(nn.swish(h))
            x += Dense(self.channels, jnp.float32, zero=True)(h)
        shape = (*shape[:-1], self.outputs * shape[-1])
        out = Dense(math.prod(shape[1:]), jnp.float32, zero=True)(nn.swish(nn.LayerNorm()(x)))
        return out.reshape(shape)
