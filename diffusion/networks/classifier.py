"""A classifier of noised images, the encoder half of the U-Net (Dhariwal & Nichol 2021, arXiv:2105.05233)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from diffusion.networks.blocks import Style
from diffusion.networks.layers import Dense, GroupNorm
from diffusion.networks.network import Classifier, Inputs, from_linen, one_of
from diffusion.networks.unet import Encoder, check_levels
from diffusion.types import Cond, Params


def classifier(
    shape: tuple[int, ...],
    channels: int = 128,
    channel_mults: tuple[int, ...] = (1, 2, 2, 2),
    num_blocks: int = 2,
    attention_resolutions: tuple[int, ...] = (16, 8),
    dropout: float = 0.0,
    scale_shift: bool = True,
    dtype: str = "float32",
    inputs: Inputs = Inputs(),
) -> Classifier:
    """The logits of the classes, [batch, num_classes] float32, of an image at any level of noise.

    The options are those of `unet`. The features of the lowest level are averaged over the pixels (ADM's "adaptive"
    pooling; the published classifiers pool by attention).
    ValueError for a data set without classes, and as in `unet`.
    """
    if inputs.num_classes < 2:
        raise ValueError(f"a classifier needs a data set with two classes or more, this one has {inputs.num_classes}.")
    sizes = (channels, channel_mults, num_blocks, attention_resolutions)
    module = PooledEncoder(
        **encoder_options(shape, *sizes, dropout, scale_shift, dtype), num_outputs=inputs.num_classes
    )
    network = from_linen(module, shape, {})

    def read(params: Params, x: Array, noise_cond: Any, *, cond: Cond, key: Any = None) -> tuple[Array, Array]:
        level = jnp.broadcast_to(jnp.asarray(noise_cond, jnp.float32), x.shape[:1])
        logits, kept = module.apply({"params": params}, x, level, {}, False, mutable=["intermediates"])
        return logits, kept["intermediates"]["pooled"][0]

    return Classifier(network.init, network.apply, read)


def encoder_options(
    shape: tuple[int, ...],
    channels: int,
    channel_mults: tuple[int, ...],
    num_blocks: int,
    attention_resolutions: tuple[int, ...],
    dropout: float,
    scale_shift: bool,
    dtype: str,
) -> dict[str, Any]:
    """An Encoder's fields for these options of `unet`; ValueError where they do not fit the images."""
    check_levels(shape, channels, channel_mults, num_blocks, dropout)
    kind = jnp.dtype(one_of("dtype", dtype, ("float32", "bfloat16")))
    return {
        "style": Style(dtype=kind, dropout=dropout, scale_shift=scale_shift),
        "channels": channels,
        "channel_mults": tuple(channel_mults),
        "num_blocks": num_blocks,
        "attention_resolutions": tuple(attention_resolutions),
    }


class PooledEncoder(Encoder):
    """The features of the U-Net's lowest level, averaged and mapped to num_outputs numbers."""

    num_outputs: int = 0

    @nn.compact
    def __call__(self, x: Array, noise_cond: Array, cond: Any, train: bool) -> Array:
        features, _ = self.down(x, self.told(noise_cond, cond), train)
        pooled = nn.swish(GroupNorm(jnp.float32)(features)).mean((1, 2))
        self.sow("intermediates", "pooled", pooled)
        return Dense(self.num_outputs, jnp.float32, name="out")(pooled)
