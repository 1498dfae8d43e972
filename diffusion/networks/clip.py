"""An encoder of noised images and one of captions, which meet in one space: a noise-aware CLIP."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from diffusion.networks.classifier import PooledEncoder, encoder_options
from diffusion.networks.layers import Dense
from diffusion.networks.network import Inputs, Matcher, from_linen
from diffusion.networks.text import TextEncoder, text_encoder

FIRST_SCALE = 1 / 0.07
LARGEST_SCALE = 100.0
"""CLIP's first temperature and its limit (Radford et al. 2021, section 2.5)."""


def clip(
    shape: tuple[int, ...],
    channels: int = 128,
    channel_mults: tuple[int, ...] = (1, 2, 2, 2),
    num_blocks: int = 2,
    attention_resolutions: tuple[int, ...] = (16, 8),
    dropout: float = 0.0,
    scale_shift: bool = True,
    dtype: str = "float32",
    text_channels: int = 256,
    text_blocks: int = 4,
    text_heads: int = 4,
    width: int = 128,
    inputs: Inputs = Inputs(),
) -> Matcher:
    """(image [batch, width], text [batch, width], scale [batch]): unit vectors, and how much their product counts.

    Radford et al. 2021, arXiv:2103.00020, on noised images as in GLIDE (Nichol et al. 2021, arXiv:2112.10741, section
    2.3). The image's encoder is `classifier`'s, the text's is the U-Net's. The image's encoder says the scale too, as
    a noisy image says less: unit vectors alone could not be unsure. CLIP's numbers: it starts near 1 / 0.07
    and stays below 100.
    ValueError for a data set without captions, and as in `unet`.
    """
    if width < 1:
        raise ValueError(f"got width={width}, expected at least 1, such as 128.")
    example = inputs.example(shape, text_conditional=True)
    image = PooledEncoder(
        **encoder_options(
            shape, channels, channel_mults, num_blocks, attention_resolutions, dropout, scale_shift, dtype
        ),
        num_outputs=width + 1,
    )
    text = text_encoder(text_channels, text_blocks, text_heads, inputs.caption_length, image.style.dtype)
    network = from_linen(EncoderPair(image, text, width), shape, example)
    return Matcher(network.init, network.apply)


class EncoderPair(nn.Module):
    """See `clip`."""

    image: PooledEncoder
    text: TextEncoder
    width: int

    @nn.compact
    def __call__(self, x: Array, noise_cond: Array, cond: Any, train: bool) -> tuple[Array, Array, Array]:
        image = self.image(x, noise_cond, {}, train)
        scale = jnp.minimum(FIRST_SCALE * jnp.exp(image[:, -1]), LARGEST_SCALE)
        text = Dense(self.width, jnp.float32, name="text_out")(self.text(cond["text"]).pooled.astype(jnp.float32))
        return _unit(image[:, :-1]), _unit(text), scale


def _unit(x: Array) -> Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)
