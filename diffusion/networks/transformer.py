"""What transformers share: the attention among tokens and the MLP on each (Vaswani et al. 2017, section 3)."""

import flax.linen as nn
import jax
from jaxtyping import Array

from diffusion.networks.layers import Dense, Dtype


class Attention(nn.Module):
    """Multi-head self-attention over tokens [b, n, c] (Vaswani et al. 2017, section 3.2.2), logits in float32.

    mask: bool [b, n], the tokens that are looked at; None for all. Each row needs one.
    """

    num_heads: int
    dtype: Dtype
    zero: bool = False

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        b, n, c = x.shape
        qkv = Dense(3 * c, self.dtype, name="qkv")(x).reshape(b, n, 3, self.num_heads, c // self.num_heads)
        q, k, v = (qkv[:, :, i] for i in range(3))
        seen = None if mask is None else mask[:, None, None, :]
        attended = jax.nn.dot_product_attention(q, k, v, mask=seen)
        return Dense(c, self.dtype, self.zero, name="out")(attended.reshape(b, n, c))


def mlp(x: Array, hidden_channels: int, dtype: Dtype, zero: bool = False) -> Array:
    """gelu between two linear layers, "hidden" and "out", which are layers of the caller; zero: out starts at zero."""
    hidden = Dense(hidden_channels, dtype, name="hidden")(x)
    return Dense(x.shape[-1], dtype, zero, name="out")(nn.gelu(hidden, approximate=True))
