"""Sampling when a part of the image is known: after each step the known part is put in again.

What is known is the part P x of the image, with an orthogonal projector P:

    inpainting         the pixels of a mask            P x = x where the mask is True, else 0
    colourisation      the mean of the channels        P x = x's component along (1, 1, 1) / sqrt(3) in each pixel
    super-resolution   the mean of each f x f block    P x = each pixel's block mean

At the start and after each step (Song et al. 2020, arXiv:2011.13456, section 5 and appendix I; Lugmayr et al. 2022,
arXiv:2201.09865, eq. 8)

    x <- P (alpha y + sigma z) + (I - P) x,

with fresh noise z and the level (alpha, sigma) that x is at, so that the denoiser always sees known and unknown parts
that are equally noisy; at clean data it is P y itself. Each sampler's step is a sum of x, estimates and noise with
one coefficient per sample, so it commutes with P: what a multi-step method remembers of the known part reaches the
unknown one through the denoiser alone, and its state is left as it is. (The estimates in it do jump a little with z.)

The result is near to a draw from p(x_0 | P x_0 = P y), not one: a step is drawn without knowing which z the known part
gets next, so the two parts fit together less well than they should. Going back and forth (`grids.resampled`) mends it.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from diffusion import gaussian, keys
from diffusion.sampling.sampler import Sampler
from diffusion.types import Denoiser, NoiseLevel, Step


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Known:
    """What is known of each sample: P y, one row a sample, and the rule P. Made by `pixels`, `greys`, `block_means`.

    images: P y, [n, *shape], finite everywhere.
    mask:   what the rule needs besides, one row a sample, or None.
    part:   (x, mask) -> P x; a function of the module, so that the same rule is compiled once.
    """

    images: Any
    mask: Any
    part: Callable[[Any, Any], Any] = field(metadata={"static": True})

    def put_into(self, x: Any, level: NoiseLevel, keys_: Any) -> Any:
        """x with its known part replaced by that of a draw of q(x_t | y) at the level; keys_ [batch]."""
        noised = gaussian.diffuse(self.images, keys.normal(keys_, x.shape[1:]), level)
        return self.part(noised, self.mask) + (x - self.part(x, self.mask))


def replacing(sampler: Sampler, known: Known) -> Sampler:
    """The sampler that puts the known part in again after each step; all else is the sampler's own."""

    def step(denoise: Denoiser, x: Any, state: Any, step: Step, keys_: Any) -> tuple[Any, Any]:
        x, state = sampler.step(denoise, x, state, step, keys_)
        return known.put_into(x, step.to, keys.each_stream(keys_, "known")), state

    return dataclasses.replace(sampler, step=step)


def pixels(images: Float[np.ndarray, "n h w c"], mask: Bool[np.ndarray, "..."]) -> Known:
    """The pixels where the mask is True, in all channels; what the images hold elsewhere, be it NaN, is never used.

    mask [h, w], the same for all, or [n, h, w]. ValueError for other masks, and for one that knows all of an image or
    nothing.
    """
    rows = np.broadcast_to(_checked_mask(mask, images.shape), images.shape[:3])[..., None]
    cleaned = np.where(rows, images, np.float32(0))
    return Known(_finite(cleaned, "a known pixel"), rows, _masked)


def greys(images: Float[np.ndarray, "n h w 1"]) -> Known:
    """The grey of every pixel, which is the mean of its three channels."""
    return Known(_finite(np.repeat(images, 3, axis=-1), "a grey value"), None, _mean_colour)


def block_means(images: Float[np.ndarray, "n h w c"], factor: int) -> Known:
    """The mean of every factor x factor block of an image that is `factor` times as high and wide."""
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    return Known(_finite(images, "a pixel"), None, _block_mean(factor))


def _masked(x: Any, mask: Any) -> Any:
    return jnp.where(mask, x, 0)


def _mean_colour(x: Any, mask: None) -> Any:
    return jnp.broadcast_to(x.mean(-1, keepdims=True), x.shape)


@functools.cache
def _block_mean(factor: int) -> Callable[[Any, None], Any]:
    def part(x: Any, mask: None) -> Any:
        n, h, w, c = x.shape
        blocks = x.reshape(n, h // factor, factor, w // factor, factor, c)
        return jnp.broadcast_to(blocks.mean((2, 4), keepdims=True), blocks.shape).reshape(x.shape)

    return part


def _checked_mask(mask: Any, shape: tuple[int, ...]) -> Any:
    n, h, w, _ = shape
    if mask.dtype != bool:
        raise ValueError(f"got a mask of type {mask.dtype}, expected bool, True where a pixel is known.")
    if mask.shape not in ((h, w), (n, h, w)):
        raise ValueError(f"got a mask of shape {mask.shape}, expected ({h}, {w}) or ({n}, {h}, {w}).")
    share = mask.mean((-2, -1))
    if (share == 1).any():
        raise ValueError("the mask is True everywhere: every pixel is known, and nothing is left to be painted.")
    if (share == 0).any():
        raise ValueError("the mask is False everywhere: no pixel is known. Use `generate` for that.")
    return mask


def _finite(images: Any, what: str) -> Any:
    if not np.isfinite(images).all():
        raise ValueError(f"{what} of the images is NaN or infinite.")
    return images.astype(np.float32)
