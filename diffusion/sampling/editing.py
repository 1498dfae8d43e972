"""Editing images with a trained model: a few lines each over `generate`.

Images are float [n, h, w, c] in [-1, 1], one result for each row; for several results of one image repeat it
(np.repeat). `options` are those of `generate`: seed, first_id or ids, sampler, num_steps or steps, cond, batch_size,
progress, save_every. The model is a `build.Run`, or a bare denoiser with sampler= and steps=.
"""

from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from diffusion import gaussian
from diffusion.sampling import grids, replacement
from diffusion.sampling.ddim import ddim
from diffusion.sampling.generate import Model, generate, grid_for, noise
from diffusion.types import Denoiser

Images = Float[np.ndarray, "n h w c"]


def inpaint(
    model: Model | Denoiser,
    images: Images,
    mask: Bool[np.ndarray, "..."],
    *,
    num_resamples: int = 1,
    jump_length: int = 10,
    **options: Any,
) -> Any:
    """The images, with the pixels where the mask is False painted anew; the others are kept exactly.

    mask:           [h, w], or [n, h, w]; True is known. What the images hold at unknown pixels is never used.
    num_resamples:  1 replaces the known part after each step (`replacement.py`); more are RePaint, which walks each
                    stretch of the grid so often and fits the new part better to the old (`grids.resampled`).
    jump_length:    steps of a stretch, below the number of the grid's.
    """
    known = replacement.pixels(_checked(images), mask)
    return _complete(model, known, num_resamples, jump_length, options)


def colourise(
    model: Model | Denoiser,
    greys: Float[np.ndarray, "n h w 1"],
    *,
    num_resamples: int = 1,
    jump_length: int = 10,
    **options: Any,
) -> Any:
    """Colour images [n, h, w, 3] whose mean over the channels is the grey one (Song et al. 2020, appendix I.3)."""
    shape = (*greys.shape[1:3], 3)
    if (wanted := _shape(model, shape)) != shape:
        raise ValueError(f"got grey images to colour, {shape}, but the model draws images of the shape {wanted}.")
    known = replacement.greys(_checked(greys))
    return _complete(model, known, num_resamples, jump_length, options)


def super_resolve(
    model: Model | Denoiser,
    images: Images,
    factor: int = 2,
    *,
    num_resamples: int = 1,
    jump_length: int = 10,
    **options: Any,
) -> Any:
    """Images of `factor` times the height and width, whose factor x factor blocks have the given pixels as means.

    ValueError for images that are not the model's size divided by the factor.
    """
    h, w, c = images.shape[1:]
    shape = (h * factor, w * factor, c)
    if factor < 2 or _shape(model, shape) != shape:
        raise ValueError(
            f"got images of the shape {images.shape[1:]} and factor={factor}, expected a factor of at least 2 and "
            f"images that are as much smaller than what the model draws, {_shape(model, shape)}."
        )
    known = replacement.block_means(_checked(images), factor)
    return _complete(model, known, num_resamples, jump_length, options)


def image_to_image(model: Model | Denoiser, images: Images, *, strength: float = 0.5, **options: Any) -> Any:
    """Each image, noised as far as strength says and denoised again (SDEdit, Meng et al. 2021, arXiv:2108.01073).

    strength: the share of the grid's steps that is taken, in (0, 1]. Small ones keep the image, 1 starts at the
              grid's first level, where as good as nothing of it is left.
    """
    seed, ids = options.get("seed", 0), options.pop("ids", None)
    ids = options.pop("first_id", 0) + np.arange(len(images)) if ids is None else ids
    sampler, steps = _grid(model, options)
    steps = grids.last(steps, strength)
    level = jax.tree.map(lambda column: np.float32(column[0]), steps.now)
    x = gaussian.diffuse(_checked(images), noise(images.shape[1:], seed=seed, ids=ids), level)
    return generate(
        model, x_T=np.asarray(x), shape=_shape(model, x.shape[1:]), sampler=sampler, steps=steps, ids=ids, **options
    )


def interpolate(
    model: Model | Denoiser,
    first: np.ndarray,
    second: np.ndarray,
    *,
    num_samples: int = 8,
    strength: float = 0.5,
    **options: Any,
) -> Any:
    """num_samples images on the way from one to the other, [h, w, c] (Ho et al. 2020, section 4.3, figure 8).

    Both are noised with the same noise and mixed, (1 - w) x_t + w x_t' with w from 0 to 1, and all are denoised with
    the same noise again. That equals `image_to_image` of the mixed images with one id for all.
    """
    share = np.linspace(0, 1, num_samples, dtype=np.float32).reshape(-1, 1, 1, 1)
    mixed = (1 - share) * _checked(first)[None] + share * _checked(second)[None]
    ids = np.full(num_samples, options.pop("first_id", 0))
    return image_to_image(model, mixed, strength=strength, ids=ids, **options)


def interpolate_noise(
    model: Model | Denoiser,
    *,
    ids: tuple[int, int] = (0, 1),
    num_samples: int = 8,
    seed: int = 0,
    shape: tuple[int, ...] | None = None,
    **options: Any,
) -> Any:
    """num_samples images on the way from one sample of the seed to another, by `slerp` of their noise.

    ids: of both samples; the ends are what `generate` draws for them. The sampler, by default ddim(), should be
    deterministic: what a stochastic one adds on the way is that of the first id.
    """
    options.setdefault("sampler", ddim())
    sampler, steps = _grid(model, options)
    shape = _shape(model, shape)
    first, second = noise(shape, seed=seed, ids=ids)
    mixed = np.stack([slerp(first, second, w) for w in np.linspace(0, 1, num_samples)])
    x_T = np.float32(np.hypot(steps.now.alpha[0], steps.now.sigma[0])) * mixed
    shared = np.full(num_samples, ids[0])
    return generate(model, x_T=x_T, shape=shape, sampler=sampler, steps=steps, seed=seed, ids=shared, **options)


def slerp(a: Float[np.ndarray, "*shape"], b: Float[np.ndarray, "*shape"], weight: float) -> Float[np.ndarray, "*shape"]:
    """sin((1 - w) angle) / sin(angle) a + sin(w angle) / sin(angle) b, on the arc between them (DDIM, appendix D.5).

    Of Gaussian noise, whose lengths are nearly equal, it has the same length again; a straight line would pass nearer
    to 0, where noise never is. Vectors along one line are mixed linearly.
    """
    cosine = np.clip(np.sum(a * b, dtype=np.float64) / (np.linalg.norm(a) * np.linalg.norm(b)), -1, 1)
    angle = np.arccos(cosine)
    if np.sin(angle) < 1e-6:
        return np.float32(1 - weight) * a + np.float32(weight) * b
    return (
        np.float32(np.sin((1 - weight) * angle) / np.sin(angle)) * a
        + np.float32(np.sin(weight * angle) / np.sin(angle)) * b
    )


def _complete(
    model: Any, known: replacement.Known, num_resamples: int, jump_length: int, options: dict[str, Any]
) -> Any:
    """One sample for each row of what is known."""
    sampler, steps = _grid(model, options)
    if sampler.nfe is None:
        raise ValueError(
            "the sampler chooses its own levels between the grid's, where no known part could be put in: use one that "
            "walks a grid, such as sampling.ddim() (--sampler=ddim)."
        )
    steps = grids.resampled(steps, jump_length, num_resamples)
    shape = _shape(model, known.images.shape[1:])
    return generate(model, known=known, shape=shape, sampler=sampler, steps=steps, **options)


def _grid(model: Any, options: dict[str, Any]) -> Any:
    """(sampler, grid), with what the options say of them taken out."""
    return grid_for(model, *(options.pop(name, None) for name in ("sampler", "num_steps", "steps")))


def _shape(model: Any, otherwise: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape of the model's samples, which a bare denoiser does not know."""
    if isinstance(model, Model):
        return tuple(model.shape)
    if otherwise is None:
        raise ValueError("a bare denoiser does not know its data: pass shape=(h, w, c).")
    return tuple(otherwise)


def _checked(images: Any) -> Any:
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(
            f"got images of type {images.dtype}, expected floating point in [-1, 1]: "
            "diffusion.data.scaling.to_unit_range(images) makes them of bytes."
        )
    return images
