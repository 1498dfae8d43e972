"""Random keys: derived by name, by step and by sample, never carried and never stored.

A run has one base key. Training noise at step i is `stream(key, "train")` folded with i, so a resumed run
draws what the uninterrupted one would have drawn. Sampling noise is keyed per sample id, so image 1234 is
the same picture alone or in a batch of 512, on one CPU or on eight TPUs. A key is used once.
"""

import math
import zlib

import jax
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray


def stream(key: PRNGKeyArray, purpose: str) -> PRNGKeyArray:
    """The key of one named purpose ("init", "train", "sample", ...): other names give independent keys."""
    return jax.random.fold_in(key, zlib.crc32(purpose.encode()))


def at_step(key: PRNGKeyArray, step: int | Int[Array, ""]) -> PRNGKeyArray:
    """The key of one step."""
    return jax.random.fold_in(key, step)


def per_sample(key: PRNGKeyArray, ids: Int[Array, " batch"]) -> Key[Array, " batch"]:
    """One key for each sample id."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)


def each_at_step(keys: Key[Array, " batch"], step: int | Int[Array, ""]) -> Key[Array, " batch"]:
    """Every sample's key, moved on to one step."""
    return jax.vmap(lambda key: jax.random.fold_in(key, step))(keys)


def each_stream(keys: Key[Array, " batch"], purpose: str) -> Key[Array, " batch"]:
    """Every sample's key of one named purpose."""
    return jax.vmap(lambda key: stream(key, purpose))(keys)


def normal(keys: Key[Array, " batch"], shape: tuple[int, ...]) -> Float[Array, "batch *shape"]:
    """Standard normal noise, one key a sample: row i depends on keys[i] alone."""
    return jax.vmap(lambda key: noise(key, shape))(keys)


def noise(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "*shape"]:
    """Standard normal noise, the bits of `jax.random.normal(key, shape)`.

    Drawn as one long row: loops whose innermost axis is three colours are slow to compile for CPUs, and to run.
    """
    return jax.random.normal(key, (math.prod(shape),)).reshape(shape)
