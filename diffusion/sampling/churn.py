"""EDM's churn: noise that is added before a step and taken away by it (Karras et al. 2022, arXiv:2206.00364)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffusion import gaussian, keys
from diffusion.sampling.sampler import needed_aux
from diffusion.types import NoiseLevel, Step, expand


@dataclass(frozen=True)
class Churn:
    """S_churn, S_min, S_max and S_noise of their algorithm 2, in units of sigma / alpha."""

    amount: float = 0.0
    low: float = 0.0
    high: float = math.inf
    noise: float = 1.0

    def __post_init__(self) -> None:
        if self.amount < 0 or not 0 <= self.low <= self.high or self.noise <= 0:
            raise ValueError(
                f"got churn={self.amount}, churn_min={self.low}, churn_max={self.high}, noise={self.noise}; expected "
                "churn >= 0, 0 <= churn_min <= churn_max and noise > 0."
            )

    @property
    def aux(self) -> Callable[[Step], Any] | None:
        """The log-SNR of the level that each step is raised to, sigma (1 + gamma); None without churn."""
        return self._raised if self.amount > 0 else None

    def _raised(self, steps: Step) -> Any:
        sigma = np.exp(-steps.now.log_snr / 2)
        gamma = min(self.amount / len(steps.h), math.sqrt(2) - 1)
        return steps.now.log_snr - 2 * np.log1p(np.where((sigma >= self.low) & (sigma <= self.high), gamma, 0.0))

    def add(self, x: Any, step: Step, keys_: Any, name: str) -> tuple[Any, NoiseLevel]:
        """(x, level) after the noise was added; both as they were without churn."""
        if self.amount == 0:
            return x, step.now
        raised = needed_aux(step, name)
        h = step.now.log_snr - raised.log_snr
        noisier = h > 0  # not where churn is off, nor at pure noise, where no level is noisier
        scale, variance = gaussian.forward_kernel(Step(raised, step.now, h))
        scale, std = jnp.where(noisier, scale, 1.0), jnp.where(noisier, self.noise * jnp.sqrt(variance), 0.0)
        return expand(scale, x) * x + expand(std, x) * keys.normal(keys_, x.shape[1:]), raised
