"""Langevin moves: they keep x at its noise level and bring it closer to that level's distribution."""

from typing import Any

import jax.numpy as jnp

from diffusion import keys
from diffusion.types import expand


def move(x: Any, score: Any, size: Any, z: Any) -> Any:
    """x + size score + sqrt(2 size) z; size [] or [batch]."""
    return x + expand(size, x) * score + expand(jnp.sqrt(2 * size), x) * z


def fresh(keys_: Any, index: Any, shape: tuple[int, ...]) -> Any:
    """Standard normal noise for the index-th move of a step, one key a sample."""
    return keys.normal(keys.each_at_step(keys_, index), shape)
