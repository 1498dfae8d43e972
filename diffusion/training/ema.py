"""Exponential moving averages of the parameters."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffusion.types import Params


def named(decays: Iterable[Any]) -> dict[str, float]:
    """{"0.9999": 0.9999, ...}: decays by the name under which their average is stored; ValueError for other values."""
    decays = tuple(decays)
    for decay in decays:
        if not (isinstance(decay, int | float) and 0 <= decay < 1):
            raise ValueError(f"ema.decays has {decay}, expected numbers in [0, 1), such as 0.9999.")
    if not decays:
        raise ValueError("ema.decays is empty; samples are drawn from the first average, so name one: (0.9999,).")
    return {f"{decay:.12g}": decay for decay in decays}


def decay_at(decay: float, step: Any, warmup: bool) -> Any:
    """The decay of update number `step` (1, 2, ...): with warm-up, min(decay, (1 + step) / (10 + step)).

    Without warm-up an average needs about 1 / (1 - decay) steps to forget its random start, and early
    samples look like noise.
    """
    return jnp.minimum(decay, (1 + step) / (10 + step)) if warmup else decay


def update(ema: Mapping[str, Params], params: Params, decays: Mapping[str, float], step: Any, warmup: bool) -> Any:
    """ema <- ema + (1 - d) (params - ema) for each decay d; step is the number of this update."""

    def moved(average: Params, part: Any) -> Params:
        one = jax.jit(lambda new, old: old + part * (new - old))  # arrays of one shape are traced once
        return jax.tree.map(one, params, average)

    return {name: moved(average, 1 - decay_at(decays[name], step, warmup)) for name, average in ema.items()}
