"""Transforms of a denoiser, Denoiser -> Denoiser: they compose, and every sampler takes the result.

Thresholds keep an estimate in the data's range; `classifier_free` moves it away from what a model says without a
condition; `energy` moves it down the gradient of any function, such as what a classifier says of x_t; `chain` puts
transforms one after the other. Each returns a consistent pair again: when x_0 is changed, eps follows from
x_t = alpha x_0 + sigma eps.
(The one exception is CFG++, `classifier_free(plus_plus=True)`, which says why.)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.gaussian import eps_from_x_0, tilt
from diffusion.types import Array, Denoiser, NoiseLevel, Prediction, expand

Transform = Callable[[Denoiser], Denoiser]
Pair = Callable[[Any, NoiseLevel], tuple[Prediction, Prediction]]
"""(x_t, level) -> (the prediction with the condition, the one without)."""
Energy = Callable[[Any, NoiseLevel], Any]
"""(x, level) -> one number a sample, [batch], differentiable in x."""


def none() -> Transform:
    """The denoiser as it is."""
    return lambda denoise: denoise


def clip(low: float = -1.0, high: float = 1.0) -> Transform:
    """Clips the estimate of x_0 to the data's range, as DDPM's sampler does at every step."""
    if not low < high:
        raise ValueError(f"got low={low}, high={high}; expected low < high.")
    return _on_x_0(lambda x_0: jnp.clip(x_0, low, high))


def dynamic(percentile: float = 0.995) -> Transform:
    """Dynamic thresholding of x_0 (Saharia et al. 2022, arXiv:2205.11487, section 2.3).

    s = the given quantile of |x_0| over each sample, at least 1; x_0 is clipped to [-s, s] and divided by s.
    """
    if not 0 < percentile <= 1:
        raise ValueError(f"got percentile={percentile}, expected a share in (0, 1], such as 0.995.")

    def threshold(x_0: Array) -> Array:
        s = jnp.quantile(jnp.abs(x_0).reshape(x_0.shape[0], -1), percentile, axis=1)
        s = expand(jnp.maximum(s, 1.0), x_0)
        return jnp.clip(x_0, -s, s) / s

    return _on_x_0(threshold)


def _on_x_0(change: Callable[[Array], Array]) -> Transform:
    def transform(denoise: Denoiser) -> Denoiser:
        def changed(x_t: Array, level: NoiseLevel) -> Prediction:
            prediction = denoise(x_t, level)
            x_0 = change(prediction.x_0)
            return prediction._replace(x_0=x_0, eps=eps_from_x_0(x_t, x_0, level), push=None)

        return changed

    return transform


def chain(*transforms: Transform) -> Transform:
    """The transforms one after the other, the first nearest to the denoiser: chain(clip(), energy(f), dynamic())."""

    def transform(denoise: Denoiser) -> Denoiser:
        for change in transforms:
            denoise = change(denoise)
        return denoise

    return transform


def energy(function: Energy, scale: float = 1.0, of: str = "x_t") -> Transform:
    """Guidance by any differentiable energy E: samples of p(x) exp(-scale E), those of low energy.

    The score becomes score - scale grad E: eps gains scale sigma grad E, and x_0 loses scale sigma^2 / alpha grad E
    (Dhariwal & Nichol 2021, arXiv:2105.05233, eq. 14 and algorithm 2, whose classifier is E = -log p(y | x_t)). This is
    the score form, for every sampler; ancestral sampling shifts its mean by variance * grad instead (algorithm 1), for
    which the gradient stays in `Prediction.push`. A threshold after it bounds what it does to x_0, and makes ancestral
    sampling use the score form too; a threshold before it leaves it free, but stops the gradient of an energy of x_0 at
    the pixels that it clips: load the run with sampler={"threshold": "none"} there. At pure noise (alpha = 0), where
    x_t says nothing of x_0, nothing is pushed.

    function:  E(x, level) -> [batch], each row of its own sample alone. `level` has the fields [] or [batch].
    scale:     how much the energy counts; 0 is off, and 1 for E = -log p(y | x_t) samples p(x | y).
    of:        "x_t": E reads the noisy sample, as noise-aware networks do.
               "x_0": E reads the estimate of x_0, and the gradient runs through the denoiser: any function of clean
               images (Chung et al. 2022, arXiv:2209.14687, eq. 7-10; Bansal et al. 2023, arXiv:2302.07121, eq. 6), at
               the cost of a backward pass through the network in each step. The estimate is unsure at noisy levels:
               divide E by its variance, sigma^2 / (alpha^2 + sigma^2) for data of unit variance, or the push, which is
               sigma^2 / alpha times the gradient, throws x_0 out of the data (Song et al. 2023, "Pseudoinverse-guided
               diffusion models for inverse problems"), with a floor for the clean end. Samples are then
               of p(x) exp(-scale E) only roughly: E of an estimate is not the energy of x_t.
    """
    if not np.isfinite(scale):
        raise ValueError(f"got scale={scale}, expected a finite number: 1 is the energy as it is, 0 is off.")
    if of not in ("x_t", "x_0"):
        raise ValueError(f"got of={of!r}, expected 'x_t' or 'x_0': what the energy reads.")

    def transform(denoise: Denoiser) -> Denoiser:
        def total(x_t: Array, level: NoiseLevel) -> tuple[Any, Prediction | None]:
            if of == "x_t":
                return _sum(function(x_t, level), x_t), None
            prediction = denoise(x_t, level)
            return _sum(function(prediction.x_0, level), x_t), prediction

        def guided(x_t: Array, level: NoiseLevel) -> Prediction:
            gradient, prediction = jax.grad(total, has_aux=True)(x_t, level)
            return _pushed(denoise(x_t, level) if prediction is None else prediction, -scale * gradient, level)

        return guided

    return transform


def _sum(energies: Any, x: Array) -> Any:
    """The sum over the batch, whose gradient is each sample's own; ValueError where it is not one number a sample."""
    if jnp.shape(energies) != x.shape[:1]:
        raise ValueError(
            f"the energy has the shape {jnp.shape(energies)}, expected {x.shape[:1]}, one number for each sample: sum "
            "or average over every axis but the first."
        )
    return energies.sum()


def _pushed(prediction: Prediction, push: Array, level: NoiseLevel) -> Prediction:
    """The prediction when push is added to the score."""
    push = jnp.where(expand(jnp.asarray(level.alpha > 0), push), push, 0)
    x_0 = prediction.x_0 + expand(tilt(level), push) * push
    eps = prediction.eps - expand(level.sigma, push) * push
    total = push if prediction.push is None else prediction.push + push
    return prediction._replace(x_0=x_0, eps=eps, push=total)


@dataclass(frozen=True)
class Guidance:
    """How the predictions with and without a condition are put together: the options of `classifier_free`.

    ValueError for options out of their range.
    """

    scale: float = 1.0
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    plus_plus: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.scale < np.inf:
            raise ValueError(f"got scale={self.scale}, expected 0 (no condition), 1 (the condition as it is) or more.")
        if self.interval is not None and not self.interval[0] < self.interval[1]:
            raise ValueError(f"got interval={self.interval}, expected (low, high) in log-SNR with low < high.")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"got rescale={self.rescale}, expected a share in [0, 1], such as 0.7; 0 is off.")
        if self.plus_plus and not (self.scale <= 1 and self.rescale == 0):
            raise ValueError(
                f"got scale={self.scale}, rescale={self.rescale} with plus_plus=True, which expects a scale in [0, 1], "
                "such as 0.6, and rescale=0."
            )

    @property
    def active(self) -> bool:
        """Whether anything is guided: otherwise the result is the conditional denoiser itself."""
        return self.scale != 1 or self.plus_plus

    def inside(self, level: NoiseLevel) -> Any:
        """Whether the level is a guided one, of the level's shape."""
        low, high = self.interval or (-np.inf, np.inf)
        return (low <= level.log_snr) & (level.log_snr < high)


def classifier_free(
    cond: Denoiser,
    uncond: Denoiser,
    scale: float,
    *,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
    plus_plus: bool = False,
) -> Denoiser:
    """The guided denoiser, x_0 = x_0_uncond + scale (x_0_cond - x_0_uncond), and the same for eps.

    Ho & Salimans 2022, arXiv:2207.12598, eq. 6, whose w is scale - 1. At one x_t, eps is linear in x_0, so that both
    formulas are one and the pair stays consistent.

    cond, uncond:  the denoisers with and without the condition.
    scale:      1 is cond itself (uncond is not evaluated), 0 is uncond, above 1 the condition counts more.
    interval:   (low, high) in log-SNR: levels in [low, high) are guided, the others are cond's (Kynkaanniemi et al.
                2024, arXiv:2404.07724; EDM's sigma in (lo, hi] is (-2 ln hi, -2 ln lo) here). There uncond is not
                evaluated, unless the rows of a batch have levels of their own.
    rescale:    share in [0, 1] of the way on which the standard deviation of each sample's x_0, over all its values,
                is brought back to that of cond's (Lin et al. 2023, arXiv:2305.08891, section 3.4, their phi).
                They state it for the network's output, whatever that is; here it is x_0, which means the same for
                every parameterization. eps follows.
    plus_plus:  CFG++ (Chung et al. 2024, arXiv:2406.08070, algorithm 2): x_0 is the guided one, with a scale in
                [0, 1], eps is uncond's, so that the pair no longer belongs to x_t. For samplers whose step is x_0
                noised again by eps, ddim and euler (`Sampler.renoises`); others take one of the two alone, with x_t,
                and would not be guided, or too little. A step of DDIM is then one of plain guidance with the scale
                scale / (1 - exp(-h / 2)), h being its change of log-SNR: more steps guide more strongly, and there is
                no ODE that they solve. Thresholds belong on cond and uncond; on the result they would make eps
                consistent again.

    ValueError for options out of their range.
    """
    how = Guidance(scale, interval, rescale, plus_plus)
    return guided(lambda x_t, level: (cond(x_t, level), uncond(x_t, level)), cond, how)


def guided(pair: Pair, cond: Denoiser, how: Guidance) -> Denoiser:
    """`classifier_free` for both predictions made together: pair where it guides, cond alone where it does not."""
    if not how.active:
        return cond

    def both(x_t: Array, level: NoiseLevel) -> Prediction:
        return _combine(*pair(x_t, level), level, how)

    def denoise(x_t: Array, level: NoiseLevel) -> Prediction:
        if how.interval is None:
            return both(x_t, level)
        inside = how.inside(level)
        if np.ndim(inside) == 0:
            pushed = jax.eval_shape(lambda x: both(x, level), x_t).push is not None
            return jax.lax.cond(inside, lambda x: both(x, level), lambda x: _with_push(cond(x, level), pushed), x_t)
        given, without = pair(x_t, level)  # levels by row: each row's own choice
        combined = _combine(given, without, level, how)
        given = _with_push(given, combined.push is not None)
        return jax.tree.map(lambda a, b: jnp.where(expand(inside, a), a, b), combined, given)

    return denoise


def _combine(cond: Prediction, uncond: Prediction, level: NoiseLevel, how: Guidance) -> Prediction:
    """The guided prediction at one x_t."""
    x_0 = cond.x_0 + (how.scale - 1) * (cond.x_0 - uncond.x_0)
    cond = cond._replace(push=_combined_push(cond.push, uncond.push, how))
    if how.plus_plus:
        return cond._replace(x_0=x_0, eps=uncond.eps)
    eps = cond.eps + (how.scale - 1) * (cond.eps - uncond.eps)
    if how.rescale > 0:
        wanted, had = _std(cond.x_0), _std(x_0)
        ratio = jnp.where(had > 0, wanted / jnp.where(had > 0, had, 1), 1)
        less = expand(how.rescale * (1 - ratio), x_0) * x_0
        x_0, eps = x_0 - less, eps + expand(level.alpha / level.sigma, x_0) * less
    return cond._replace(x_0=x_0, eps=eps)


def _with_push(prediction: Prediction, pushed: bool) -> Prediction:
    """The prediction with a push, of zero where it had none, or without one: both ends of a choice must be alike."""
    if not pushed:
        return prediction._replace(push=None)
    return prediction if prediction.push is not None else prediction._replace(push=jnp.zeros_like(prediction.x_0))


def _combined_push(cond: Any, uncond: Any, how: Guidance) -> Any:
    """The push of both branches together, or None where what is made of them is no longer a shift of the score."""
    if how.plus_plus or how.rescale > 0 or (cond is None and uncond is None):
        return None
    with_it, without = (0.0 if push is None else push for push in (cond, uncond))
    return with_it + (how.scale - 1) * (with_it - without)


def _std(x: Array) -> Any:
    """Each sample's standard deviation over its values, [batch]."""
    return jnp.std(x.reshape(x.shape[0], -1), axis=1)
