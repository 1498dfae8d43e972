"""Annealed Langevin dynamics: NCSN's sampler."""

import functools
from typing import Any

import jax

from diffusion import gaussian
from diffusion.sampling.langevin import fresh, move
from diffusion.sampling.sampler import Sampler, stateless
from diffusion.types import Denoiser, Step


@functools.cache
def annealed_langevin(moves: int = 100, step_size: float = 0.1) -> Sampler:
    """Langevin moves at each level of a ladder, from noisy to clean (Song & Ermon 2019, arXiv:1907.05600, alg. 1).

    moves:      per level, of size step_size sigma^2 each (their alpha_i / 2 in units of the level's variance).
    Between levels x keeps its place relative to the data's scale; at the end it is denoised once (Song & Ermon
    2020, arXiv:2006.09011, appendix: "denoising"). Meant for unscaled paths such as ve_ladder; it cannot start at pure
    noise, where the data have no scale.
    """
    if moves < 1 or not 0 < step_size < 1:
        raise ValueError(f"got moves={moves}, step_size={step_size}; expected moves >= 1 and step_size in (0, 1).")

    def step(denoise: Denoiser, x: Any, state: None, step: Step, keys: Any) -> tuple[Any, None]:
        now, size = step.now, step_size * step.now.sigma**2

        def once(i: Any, x: Any) -> Any:
            return move(x, gaussian.score(denoise(x, now).eps, now), size, fresh(keys, i, x.shape[1:]))

        x = jax.lax.fori_loop(1, moves, once, once(0, x))  # the first lies outside the loop, to be remembered
        moved = x * (step.to.alpha / now.alpha)
        return jax.lax.cond(step.to.sigma > 0, lambda: moved, lambda: step.to.alpha * denoise(x, now).x_0), None

    return Sampler(stateless, step, order=1, nfe=lambda n: n * moves + 1, check=_check)


def _check(steps: Step) -> None:
    if (steps.now.alpha == 0).any():
        raise ValueError(
            "annealed_langevin cannot start at pure noise (alpha = 0). Use one that ends in finite noise, such as "
            "ve_ladder or ve_geometric, or another sampler."
        )
