"""Predictor-corrector sampling: score SDE's."""

import functools
from typing import Any

import jax.numpy as jnp

from diffusion import gaussian
from diffusion.sampling.langevin import fresh, move
from diffusion.sampling.sampler import Sampler, stateless
from diffusion.types import Denoiser, Step, expand


@functools.cache
def predictor_corrector(predictor: str = "reverse_diffusion", snr: float = 0.16, corrections: int = 1) -> Sampler:
    """Langevin moves at each level, then a step of the reverse SDE (Song et al. 2020, arXiv:2011.13456, alg. 1-5).

    predictor:    "reverse_diffusion": x_to = (2 - r) x + G^2 score + G z, the forward kernel N(r x, G^2 I) undone
                  (appendix E); or "ancestral": the posterior with the small variance.
    snr:          size of the Langevin moves, 2 (snr |z| / |score|)^2, for each sample by itself (their code takes the
                  batch's mean, which makes a sample depend on its batch).
    corrections:  moves per level. The last step, to clean data, adds no noise.
    """
    if predictor not in ("reverse_diffusion", "ancestral"):
        raise ValueError(f"got predictor={predictor!r}, expected 'reverse_diffusion' or 'ancestral'.")
    if snr <= 0 or corrections < 1:
        raise ValueError(f"got snr={snr}, corrections={corrections}; expected snr > 0 and corrections >= 1.")

    def step(denoise: Denoiser, x: Any, state: None, step: Step, keys: Any) -> tuple[Any, None]:
        now = step.now
        for i in range(corrections):
            score, z = gaussian.score(denoise(x, now).eps, now), fresh(keys, i + 1, x.shape[1:])
            x = move(x, score, 2 * now.alpha**2 * (snr * _norm(z) / _norm(score)) ** 2, z)
        x_0, eps, *_ = denoise(x, now)
        mean, small, large = gaussian.posterior(x_0, x, step)
        if predictor == "reverse_diffusion":
            scale, _ = gaussian.forward_kernel(step)
            undone = expand(2 - scale, x) * x + expand(large, x) * gaussian.score(eps, now)
            mean, small = jnp.where(step.to.sigma > 0, undone, mean), large
        std = jnp.where(step.to.sigma > 0, jnp.sqrt(small), 0.0)
        return mean + expand(std, x) * fresh(keys, 0, x.shape[1:]), None

    return Sampler(stateless, step, order=1, nfe=lambda n: n * (corrections + 1))


def _norm(x: Any) -> Any:
    return jnp.sqrt(jnp.square(x).reshape(x.shape[0], -1).sum(1))
