"""The U-Net of DDPM (Ho et al. 2020, appendix B), and with its options those of the papers that grew out of it."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from diffusion.networks.blocks import Block, CrossAttention, SelfAttention, Style
from diffusion.networks.layers import Conv, GroupNorm, LevelEmbedding, with_estimate
from diffusion.networks.network import Inputs, Network, check_dropout, from_linen, near_sizes, one_of
from diffusion.networks.remat import check as check_remat
from diffusion.networks.remat import rematted
from diffusion.networks.resample import blur, check_taps
from diffusion.networks.text import Text, TextEncoder, text_encoder
from diffusion.types import check_positive


def unet(
    shape: tuple[int, ...],
    channels: int = 128,
    channel_mults: tuple[int, ...] = (1, 2, 2, 2),
    num_blocks: int = 2,
    attention_resolutions: tuple[int, ...] = (16,),
    dropout: float = 0.1,
    block: str = "resnet",
    scale_shift: bool = False,
    num_heads: int | None = None,
    head_channels: int | None = None,
    resample: str = "conv",
    resample_filter: tuple[float, ...] = (1.0, 1.0),
    skip_rescale: bool = False,
    up_attention: str = "every",
    fourier_scale: float | None = None,
    progressive_input: bool = False,
    class_conditional: bool = False,
    text_conditional: bool = False,
    text_channels: int = 256,
    text_blocks: int = 4,
    text_heads: int = 4,
    dtype: str = "float32",
    remat: str = "none",
    inputs: Inputs = Inputs(),
) -> Network:
    """DDPM's U-Net; with the defaults on (32, 32, 3), the CIFAR-10 network of 35,746,307 parameters.

    shape:          one image's (h, w, c). h and w must be multiples of 2^(levels - 1).
    channels:       the width of the first level; level i has channels * channel_mults[i].
    num_blocks:     residual blocks per level on the way down (one more on the way up).
    attention_resolutions:  self-attention follows every block of a level whose longer side is listed.
    block:          "resnet" (DDPM) or "separable": depthwise-separable convolutions as in MobileNet (Howard et
                    al. 2017, arXiv:1704.04861), with a fraction of the parameters.
    scale_shift:    the level embedding scales and shifts each block's second norm (iDDPM, Nichol & Dhariwal 2021).
    num_heads:      of the attention (DDPM 1, the default; iDDPM 4). head_channels: the width of a head instead (ADM 64,
                    Dhariwal & Nichol 2021, arXiv:2105.05233), so that wider levels have more heads.
    resample:       between levels: "conv", a convolution of stride 2 or after repeating pixels (DDPM); "block", a
                    residual block that halves or doubles (ADM); "projected_block", the same with a 1x1 convolution on
                    its skip (NCSN++ and DDPM++, Song et al. 2020, arXiv:2011.13456, appendix H).
    resample_filter:  taps of those blocks' filter, (1, 3, 3, 1) in NCSN++; (1, 1) averages and repeats.
    skip_rescale:   x + h is divided by sqrt(2) (NCSN++, DDPM++).
    up_attention:   on the way up, attention after "every" block (DDPM) or after each level's "last" (NCSN++, DDPM++).
    fourier_scale:  the level as Fourier features of this scale instead of DDPM's sinusoids. For the schedules that tell
                    a network ln(sigma) / 4 (edm, ve_geometric, ve_ladder), where 64 is NCSN++'s 16; the others tell
                    numbers up to 1000.
    progressive_input:  the image itself, halved by blurred convolutions, joins each level (NCSN++'s "residual").
    class_conditional:  reads cond["label"] (int [batch]) and adds its embedding.
    text_conditional:   reads cond["text"] (int [batch, caption_length]) with a `text.TextEncoder` of text_channels,
                    text_blocks and text_heads. Its pooled vector joins the level, its features are read by
                    cross-attention after each self-attention (Rombach et al. 2022, arXiv:2112.10752, section 3.3).
                    Both start at zero: a new network ignores its text.
    dtype:          of the computation; parameters, normalisation statistics and the output stay float32.
    remat:          what is computed again on the way back instead of being remembered: "none"; "elementwise", all
                    but convolutions and products of matrices; "block", all that is inside a block or an attention.
    inputs:         facts of the data set and of the training, see `network.Inputs`. An estimate joins x as further
                    channels, labels and the augmentation's label join the level.
    """
    check_levels(shape, channels, channel_mults, num_blocks, dropout)
    _check_resampling(resample, resample_filter, progressive_input, len(channel_mults))
    sides = [max(shape[:2]) >> i for i in range(len(channel_mults))]
    attended = [m for m, side in zip(channel_mults, sides, strict=True) if side in attention_resolutions]
    _check_heads(num_heads, head_channels, [channels * mult for mult in (*attended, channel_mults[-1])])
    if fourier_scale is not None:
        check_positive("fourier_scale", fourier_scale)
    example = inputs.example(shape, class_conditional, text_conditional)
    style = Style(
        dtype=jnp.dtype(one_of("dtype", dtype, ("float32", "bfloat16"))),
        dropout=dropout,
        separable=one_of("block", block, ("resnet", "separable")) == "separable",
        scale_shift=scale_shift,
        skip_rescale=skip_rescale,
        num_heads=1 if num_heads is None else num_heads,
        head_channels=head_channels,
        resample_filter=tuple(resample_filter),
        project_resampled=resample == "projected_block",
        remat=check_remat(remat),
    )
    widths = (text_channels, text_blocks, text_heads)
    module = UNet(
        style=style,
        channels=channels,
        channel_mults=tuple(channel_mults),
        num_blocks=num_blocks,
        attention_resolutions=tuple(attention_resolutions),
        blocks_resample=resample != "conv",
        attend_once=one_of("up_attention", up_attention, ("every", "last")) == "last",
        fourier_scale=fourier_scale,
        progressive_input=progressive_input,
        num_labels=inputs.num_labels(class_conditional),
        outputs=inputs.outputs,
        text_encoder=text_encoder(*widths, inputs.caption_length, style.dtype) if text_conditional else None,
    )
    return from_linen(module, shape, example)


def check_levels(
    shape: tuple[int, ...], channels: int, channel_mults: tuple[int, ...], num_blocks: int, dropout: float
) -> None:
    """ValueError for images that do not fit the levels, and for numbers that make no network."""
    if len(shape) != 3:
        raise ValueError(
            f"the U-Net takes images (h, w, c), got samples of shape {shape}. For points, use network.name=mlp."
        )
    if channels < 2 or num_blocks < 1 or not channel_mults or min(channel_mults) < 1:
        raise ValueError(
            f"got channels={channels}, channel_mults={tuple(channel_mults)}, num_blocks={num_blocks}; "
            "expected channels >= 2, num_blocks >= 1 and at least one positive multiplier."
        )
    check_dropout(dropout)
    step = 2 ** (len(channel_mults) - 1)
    if shape[0] % step or shape[1] % step:
        raise ValueError(
            f"images of {shape[0]}x{shape[1]} do not fit {len(channel_mults)} levels, which halve them "
            f"{len(channel_mults) - 1} times: height and width must be multiples of {step}, such as "
            f"{near_sizes(shape, step)}. Resize the images or shorten channel_mults."
        )


def _check_heads(num_heads: int | None, head_channels: int | None, attended: list[int]) -> None:
    """attended: the widths of the levels with attention."""
    if num_heads is not None and head_channels is not None:
        raise ValueError(f"got num_heads={num_heads} and head_channels={head_channels}; give one of them.")
    divisor = head_channels if head_channels is not None else 1 if num_heads is None else num_heads
    wrong = [width for width in attended if divisor < 1 or width % divisor]
    if wrong:
        raise ValueError(
            f"got num_heads={num_heads}, head_channels={head_channels}; expected heads that divide the width of each "
            f"level with attention, of which one is {wrong[0]}."
        )


def _check_resampling(resample: str, taps: tuple[float, ...], progressive_input: bool, num_levels: int) -> None:
    one_of("resample", resample, ("conv", "block", "projected_block"))
    if check_taps(taps) != (1, 1) and resample == "conv" and not progressive_input:
        raise ValueError(
            f"got resample_filter={taps} with resample='conv', which has no filter. Use resample=block, or "
            "projected_block."
        )
    if progressive_input and num_levels < 2:
        raise ValueError("progressive_input=True needs at least two levels; give more channel_mults.")


class Told(NamedTuple):
    """What every stage is told: the level with all that joins it, [batch, width]; and the text, if there is one."""

    emb: Array
    text: Text | None


class Encoder(nn.Module):
    """The half of the U-Net on its way down, and its middle: what a U-Net and a guide have in common; see `unet`."""

    style: Style
    channels: int
    channel_mults: tuple[int, ...]
    num_blocks: int
    attention_resolutions: tuple[int, ...]
    blocks_resample: bool = False
    fourier_scale: float | None = None
    progressive_input: bool = False
    num_labels: int = 0
    text_encoder: TextEncoder | None = None

    def told(self, noise_cond: Array, cond: Any) -> Told:
        """The level, the labels and the text, as each stage is told them."""
        width, dtype = 4 * self.channels, self.style.dtype
        text = None if self.text_encoder is None else self.text_encoder(cond["text"])
        embed = LevelEmbedding(self.channels, width, self.num_labels, dtype, self.fourier_scale)
        return Told(nn.swish(embed(noise_cond, cond, None if text is None else text.pooled)), text)

    def stage(self, x: Array, told: Told, train: bool, mult: int, attend: bool) -> Array:
        """A residual block, with self-attention, and with cross-attention if there is a text, after it or not."""
        x = self._block(mult * self.channels)(x, told.emb, train)
        if not attend:
            return x
        x = rematted(SelfAttention, self.style.remat)(self.style)(x)
        return x if told.text is None else rematted(CrossAttention, self.style.remat)(self.style)(x, told.text)

    def _block(self, channels: int, resize: str | None = None) -> Block:
        return rematted(Block, self.style.remat, train_at=3)(channels, self.style, resize)

    def down(self, x: Array, told: Told, train: bool) -> tuple[Array, list[Array]]:
        """(the middle's output, what the way up joins to it)."""
        style, dtype = self.style, self.style.dtype
        pyramid = x.astype(dtype)
        x = Conv(self.channels, dtype)(pyramid)
        skips = [x]
        last = len(self.channel_mults) - 1
        for i, mult in enumerate(self.channel_mults):
            for _ in range(self.num_blocks):
                x = self.stage(x, told, train, mult, self.attends(x))
                skips.append(x)
            if i < last:
                x = self._halved(x, told.emb, train)
                if self.progressive_input:
                    blurred = blur(pyramid, style.resample_filter)
                    pyramid = Conv(x.shape[-1], dtype, stride=2, padding="VALID")(blurred)
                    x = pyramid = style.joined(pyramid, x)
                skips.append(x)
        x = self.stage(x, told, train, self.channel_mults[-1], True)
        return self.stage(x, told, train, self.channel_mults[-1], False), skips

    def _halved(self, x: Array, emb: Array, train: bool) -> Array:
        if self.blocks_resample:
            return self._block(x.shape[-1], "down")(x, emb, train)
        return Conv(x.shape[-1], self.style.dtype, stride=2)(x)

    def attends(self, x: Array) -> bool:
        """Whether self-attention follows the blocks of this level."""
        return max(x.shape[1:3]) in self.attention_resolutions


class UNet(Encoder):
    """See `unet`."""

    attend_once: bool = False
    outputs: int = 1

    @nn.compact
    def __call__(self, x: Array, noise_cond: Array, cond: Any, train: bool) -> Array:
        out_channels, dtype = self.outputs * x.shape[-1], self.style.dtype
        x = with_estimate(x, cond)
        told = self.told(noise_cond, cond)
        x, skips = self.down(x, told, train)
        for i, mult in reversed(list(enumerate(self.channel_mults))):
            for left in reversed(range(self.num_blocks + 1)):
                attend = self.attends(x) and (left == 0 or not self.attend_once)
                x = self.stage(jnp.concatenate([x, skips.pop()], axis=-1), told, train, mult, attend)
            if i > 0:
                x = self._doubled(x, told.emb, train)

        x = nn.swish(GroupNorm(dtype)(x))
        return Conv(out_channels, jnp.float32, zero=True)(x.astype(jnp.float32))

    def _doubled(self, x: Array, emb: Array, train: bool) -> Array:
        if self.blocks_resample:
            return self._block(x.shape[-1], "up")(x, emb, train)
        return Conv(x.shape[-1], self.style.dtype)(x.repeat(2, axis=1).repeat(2, axis=2))
