"""Optimizers: optax, with the few options that diffusion recipes differ in."""

from typing import TypeAlias

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
    return _clipped(optax.adam(rate, b1, b2, eps), clip_norm)


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
    return _clipped(optax.adamw(rate, b1, b2, eps, weight_decay=weight_decay), clip_norm)


def _rate(learning_rate: float, warmup_steps: int, decay_steps: int | None) -> optax.Schedule:
    if not 0 < learning_rate < float("inf") or warmup_steps < 0:
        raise ValueError(f"got learning_rate={learning_rate}, warmup_steps={warmup_steps}; expected > 0 and >= 0.")
    if decay_steps is None and warmup_steps == 0:
        return optax.constant_schedule(learning_rate)
    if decay_steps is None:
        return optax.linear_schedule(0.0, learning_rate, warmup_steps)
    if decay_steps <= warmup_steps:
        raise ValueError(f"got decay_steps={decay_steps}, expected more than warmup_steps={warmup_steps}.")
    return optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, decay_steps)


def _clipped(optimizer: Optimizer, clip_norm: float) -> Optimizer:
    if clip_norm < 0:
        raise ValueError(f"got clip_norm={clip_norm}, expected a positive norm, or 0 for no clipping.")
    if clip_norm == 0:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)
