"""Optimizers: optax, with the few options that diffusion recipes differ in.

What is one number for all arrays (a norm, a rate) is written so that compilers have little to do with it: XLA for CPUs
repeats cheap arithmetic of scalars inside the update of each of hundreds of arrays.
"""

from collections import defaultdict
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

Optimizer: TypeAlias = optax.GradientTransformation


def adam(
    learning_rate: float = 2e-4,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    warmup_steps: int = 0,
    decay_steps: int | None = None,
    clip_norm: float = 0.0,
) -> Optimizer:
    """Adam (Kingma & Ba 2014).

    warmup_steps: the learning rate grows linearly from 0 over so many updates (DDPM: 5000).
    decay_steps:  after that it falls along half a cosine to 0, reached at this update; None keeps it constant.
    clip_norm:    gradients are scaled down to this global norm (DDPM: 1); 0 is no clipping.
    """
    rate = _rate(learning_rate, warmup_steps, decay_steps)
    return _clipped(_array_by_array(optax.adam(rate, b1, b2, eps)), clip_norm)


def adamw(
    learning_rate: float = 1e-4,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    warmup_steps: int = 0,
    decay_steps: int | None = None,
    clip_norm: float = 0.0,
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2017); the other options as for `adam`."""
    rate = _rate(learning_rate, warmup_steps, decay_steps)
    return _clipped(_array_by_array(optax.adamw(rate, b1, b2, eps, weight_decay=weight_decay)), clip_norm)


def _rate(learning_rate: float, warmup_steps: int, decay_steps: int | None) -> optax.Schedule:
    if not 0 < learning_rate < float("inf") or warmup_steps < 0:
        raise ValueError(f"got learning_rate={learning_rate}, warmup_steps={warmup_steps}; expected > 0 and >= 0.")
    if decay_steps is None and warmup_steps == 0:
        return optax.constant_schedule(learning_rate)
    if decay_steps is None:
        return lambda count: learning_rate * jnp.minimum(1.0, count / warmup_steps)
    if decay_steps <= warmup_steps:
        raise ValueError(f"got decay_steps={decay_steps}, expected more than warmup_steps={warmup_steps}.")
    return optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, decay_steps)


def _array_by_array(optimizer: Optimizer) -> Optimizer:
    """An optimizer that treats each array by itself, its state unchanged: arrays of one shape are traced once."""

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        tree: Any = jax.tree.structure(grads)
        parts, whole = jax.tree.flatten(state, is_leaf=lambda part: jax.tree.structure(part) == tree)
        columns = [jax.tree.leaves(part) for part in parts]  # a moment of each array, or one count for all
        one, updates, states = jax.jit(optimizer.update), [], []
        given = [jax.tree.leaves(arrays) for arrays in (grads, params) if arrays is not None]
        for i, (array, *param) in enumerate(zip(*given, strict=True)):
            own = jax.tree.unflatten(whole, [column[i % len(column)] for column in columns])
            by, own = one(array, own, *param)
            updates.append(by)
            states.append(jax.tree.leaves(own))
        moved = [
            jax.tree.unflatten(jax.tree.structure(part), new[: len(column)])
            for part, column, new in zip(parts, columns, zip(*states, strict=True), strict=True)
        ]
        return jax.tree.unflatten(tree, updates), jax.tree.unflatten(whole, moved)

    return optax.GradientTransformation(optimizer.init, update)


def _clipped(optimizer: Optimizer, clip_norm: float) -> Optimizer:
    if clip_norm < 0:
        raise ValueError(f"got clip_norm={clip_norm}, expected a positive norm, or 0 for no clipping.")
    if clip_norm == 0:
        return optimizer
    return optax.chain(optax.stateless(lambda grads, _: _within(grads, clip_norm)), optimizer)


def _within(grads: Any, norm: float) -> Any:
    """The gradients, scaled down to this global norm where theirs is larger.

    The factor min(1, norm / |g|) is written with its root outside, which compilers do not repeat as they do a minimum.
    """
    return optax.tree.scale(jax.lax.rsqrt(jnp.maximum(1.0, jnp.square(global_norm(grads) / norm))), grads)


@jax.jit  # clipping and the metrics ask for the same one, which is traced once
def global_norm(tree: Any) -> jax.Array:
    """The root of the sum of all squares in a tree of arrays, in their own precision.

    The same as `optax.tree.norm`, but squares are summed over all axes but the last, then over arrays, then over that
    axis: XLA for CPUs makes three kernels of a sum to a scalar, and would for each array. A bias needs none of its own.
    """
    sums: dict[tuple[int, ...], list[Any]] = defaultdict(list)
    for array in jax.tree.leaves(tree):
        sums[array.shape[-1:]].append(jnp.square(array).sum(tuple(range(array.ndim - 1))))
    return jnp.sqrt(sum(sum(same_width).sum() for same_width in sums.values()))
