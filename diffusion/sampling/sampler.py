"""What a sampler is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sampler:
    """A rule that moves x from one noise level to the next.

    init(x_T) -> state: what a multi-step method remembers; None for most.
    step(denoise, x, state, step, keys) -> (x at step.to, state): x [batch, ...]; keys [batch], fresh at every
        step, one per sample, so that a sample's noise does not depend on its batch.
    order: of convergence in the step size (of the ODE or, for stochastic rules, in distribution).
    nfe(num_steps) -> the number of times that the denoiser is evaluated.
    """

    init: Callable[[Any], Any]
    step: Callable[..., tuple[Any, Any]]
    order: int
    nfe: Callable[[int], int]
