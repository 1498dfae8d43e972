"""What a sampler is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffusion.types import Step


@dataclass(frozen=True)
class Sampler:
    """A rule that moves x from one noise level to the next.

    init(x_T) -> state: what a multi-step method remembers; None for most.
    step(denoise, x, state, step, keys) -> (x at step.to, state): x [batch, ...]; keys [batch], fresh at every
        step, one per sample, so that a sample's noise does not depend on its batch.
    order: of convergence in the step size (of the ODE or, for stochastic rules, in distribution).
    nfe(num_steps) -> the number of times that the denoiser is evaluated; None where that is decided while it runs.
    aux(steps) -> for a sampler that evaluates a level between or beyond the grid's, its log-SNR for each step of a
        grid, float64; `grids.prepare` puts that level into step.aux.
    check(steps) -> None: ValueError for a grid that the sampler cannot run on; `grids.prepare` asks it.
    renoises: whether a step is x_0 noised again by eps, each as the denoiser gives it, so that the two may come from
        different estimates (CFG++, `guidance.classifier_free`).

    A self-conditioned denoiser is fed the estimate of the first evaluation before it, step by step; an evaluation
    inside `lax.cond` must not be a step's first.
    """

    init: Callable[[Any], Any]
    step: Callable[..., tuple[Any, Any]]
    order: int
    nfe: Callable[[int], int] | None
    aux: Callable[[Step], Any] | None = None
    check: Callable[[Step], None] = lambda steps: None
    renoises: bool = False


def needed_aux(step: Step, name: str) -> Any:
    """step.aux; ValueError where the grid was not prepared for this sampler."""
    if step.aux is None:
        raise ValueError(f"{name} evaluates levels beside the grid's: use steps = prepare(schedule, steps, sampler).")
    return step.aux


def one_per_step(num_steps: int) -> int:
    """The nfe of a sampler that evaluates its denoiser once in each step."""
    return num_steps


def stateless(x: Any) -> None:
    """The init of a sampler that remembers nothing."""
