"""The U-Net of DDPM (Ho et al. 2020, appendix B): ResNet blocks, group norm, self-attention at chosen sizes."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from diffusion.networks.layers import Conv, Dense, Dtype, GroupNorm, LevelEmbedding, SelfAttention
from diffusion.networks.network import Network, conditioning, from_linen


def unet(
    shape: tuple[int, ...],
    channels: int = 128,
    channel_mults: tuple[int, ...] = (1, 2, 2, 2),
    num_blocks: int = 2,
    attention_resolutions: tuple[int, ...] = (16,),
    dropout: float = 0.1,
    block: str = "resnet",
    class_conditional: bool = False,
    dtype: str = "float32",
    num_classes: int = 0,
    self_conditioning: bool = False,
    augment_label: bool = False,
) -> Network:
    """DDPM's U-Net; with the defaults on (32, 32, 3), the CIFAR-10 network of 35,746,307 parameters.

    shape:          one image's (h, w, c). h and w must be multiples of 2^(levels - 1).
    channels:       the width of the first level; level i has channels * channel_mults[i].
    num_blocks:     residual blocks per level on the way down (one more on the way up).
    attention_resolutions:  self-attention follows every block of a level whose longer side is listed.
    block:          "resnet" (DDPM) or "separable": depthwise-separable convolutions as in MobileNet (Howard et
                    al. 2017, arXiv:1704.04861), with a fraction of the parameters.
    class_conditional:  reads cond["label"] (int [batch] in 0..num_classes-1) and adds its embedding.
    dtype:          of the computation; parameters, normalisation statistics and the output stay float32.
    num_classes, self_conditioning:  facts of the data set and of the loss. Self-conditioning reads
                    cond["x_0_hat"], of x's shape, as further input channels.
    augment_label:  a fact of the data: reads cond["augment_label"] (float [batch, 9], see `augment.geometric`).
    """
    _check(shape, channels, channel_mults, num_blocks, dropout)
    example = conditioning(shape, class_conditional, num_classes, self_conditioning, augment_label)
    module = UNet(
        channels=channels,
        channel_mults=tuple(channel_mults),
        num_blocks=num_blocks,
        attention_resolutions=tuple(attention_resolutions),
        dropout=dropout,
        separable=_one_of("block", block, ("resnet", "separable")) == "separable",
        num_classes=num_classes if class_conditional else 0,
        dtype=jnp.dtype(_one_of("dtype", dtype, ("float32", "bfloat16"))),
    )
    return from_linen(module, shape, example)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"got {name}={value!r}, expected one of: {', '.join(allowed)}.")
    return value


def _check(
    shape: tuple[int, ...], channels: int, channel_mults: tuple[int, ...], num_blocks: int, dropout: float
) -> None:
    if len(shape) != 3:
        raise ValueError(
            f"the U-Net takes images (h, w, c), got samples of shape {shape}. For points, use network.name=mlp."
        )
    if channels < 2 or num_blocks < 1 or not channel_mults or min(channel_mults) < 1:
        raise ValueError(
            f"got channels={channels}, channel_mults={tuple(channel_mults)}, num_blocks={num_blocks}; "
            "expected channels >= 2, num_blocks >= 1 and at least one positive multiplier."
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"got dropout={dropout}, expected a probability in [0, 1).")
    step = 2 ** (len(channel_mults) - 1)
    if shape[0] % step or shape[1] % step:
        down, up = (tuple(max(step, s // step * step + extra) for s in shape[:2]) for extra in (0, step))
        raise ValueError(
            f"images of {shape[0]}x{shape[1]} do not fit {len(channel_mults)} levels, which halve them "
            f"{len(channel_mults) - 1} times: height and width must be multiples of {step}, such as "
            f"{down[0]}x{down[1]} or {up[0]}x{up[1]}. Resize the images or shorten channel_mults."
        )


class UNet(nn.Module):
    """See `unet`."""

    channels: int
    channel_mults: tuple[int, ...]
    num_blocks: int
    attention_resolutions: tuple[int, ...]
    dropout: float
    separable: bool
    num_classes: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array, noise_cond: Array, cond: Any, train: bool) -> Array:
        out_channels = x.shape[-1]
        if "x_0_hat" in cond:
            x = jnp.concatenate([x, cond["x_0_hat"]], axis=-1)
        emb = LevelEmbedding(self.channels, 4 * self.channels, self.num_classes, self.dtype)(noise_cond, cond)
        emb = nn.swish(emb)

        def stage(x: Array, mult: int, attend: bool) -> Array:
            x = Block(mult * self.channels, self.dropout, self.separable, self.dtype)(x, emb, train)
            return SelfAttention(self.dtype)(x) if attend else x

        x = Conv(self.channels, self.dtype)(x.astype(self.dtype))
        skips = [x]
        last = len(self.channel_mults) - 1
        for i, mult in enumerate(self.channel_mults):
            for _ in range(self.num_blocks):
                x = stage(x, mult, self._attends(x))
                skips.append(x)
            if i < last:
                x = Conv(x.shape[-1], self.dtype, stride=2)(x)
                skips.append(x)

        x = stage(x, self.channel_mults[-1], True)
        x = stage(x, self.channel_mults[-1], False)

        for i, mult in reversed(list(enumerate(self.channel_mults))):
            for _ in range(self.num_blocks + 1):
                x = stage(jnp.concatenate([x, skips.pop()], axis=-1), mult, self._attends(x))
            if i > 0:
                x = Conv(x.shape[-1], self.dtype)(x.repeat(2, axis=1).repeat(2, axis=2))

        x = nn.swish(GroupNorm(self.dtype)(x))
        return Conv(out_channels, jnp.float32, zero=True)(x.astype(jnp.float32))

    def _attends(self, x: Array) -> bool:
        return max(x.shape[1:3]) in self.attention_resolutions


class Block(nn.Module):
    """x + h(x), h = norm, swish, conv, + level embedding, norm, swish, dropout, conv (Ho et al. 2020, appendix B)."""

    channels: int
    dropout: float
    separable: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array, emb: Array, train: bool) -> Array:
        h = self._conv(nn.swish(GroupNorm(self.dtype)(x)))
        h += Dense(self.channels, self.dtype)(emb)[:, None, None, :]
        h = nn.swish(GroupNorm(self.dtype)(h))
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = self._conv(h, zero=True)
        if x.shape[-1] != self.channels:
            x = Dense(self.channels, self.dtype)(x)
        return x + h

    def _conv(self, x: Array, zero: bool = False) -> Array:
        if self.separable:
            x = Conv(x.shape[-1], self.dtype, groups=x.shape[-1])(x)
            return Conv(self.channels, self.dtype, size=1, zero=zero)(x)
        return Conv(self.channels, self.dtype, zero=zero)(x)
