"""Our side: the programs that the benchmark times, made of the library's own parts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion import keys, levels, losses, parameterization, schedules, weights
from diffusion.networks import unet

CIFAR10 = (32, 32, 3)


def cifar10_unet(dtype: str = "float32") -> unet.Network:
    """DDPM's CIFAR-10 network."""
    return unet.unet(CIFAR10, dtype=dtype)


def count(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def train_step(batch_size: int, dtype: str = "float32") -> Callable[[], None]:
    """One step of the published recipe: noise, dropout 0.1, loss, gradients, Adam, EMA, donated state."""
    network = cifar10_unet(dtype)
    schedule = schedules.linear_beta()
    optimizer = optax.adam(2e-4)

    def loss(params: Any, batch: Any, key: jax.Array) -> Any:
        return losses.denoising_loss(
            network.apply,
            params,
            batch,
            key,
            levels=levels.uniform(schedule),
            param=parameterization.eps(),
            weight=weights.constant(),
        )[0]

    def step(state: Any, batch: Any, key: jax.Array) -> Any:
        params, moments, ema, i = state
        value, grads = jax.value_and_grad(loss)(params, batch, keys.at_step(key, i))
        updates, moments = optimizer.update(grads, moments, params)
        params = optax.apply_updates(params, updates)
        ema = jax.tree.map(lambda e, p: e + (1 - 0.9999) * (p - e), ema, params)
        return (params, moments, ema, i + 1), value

    params = jax.jit(network.init)(jax.random.key(0))
    state = (params, optimizer.init(params), jax.tree.map(jnp.copy, params), jnp.zeros((), jnp.int32))
    batch = {"image": jnp.asarray(_images(batch_size))}
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch, jax.random.key(1)).compile()
    holder = [state]

    def program() -> None:
        holder[0], value = compiled(holder[0], batch, jax.random.key(1))
        jax.block_until_ready((holder[0], value))

    return program


def forward(batch_size: int, dtype: str = "float32") -> Callable[[], None]:
    """One evaluation of the network, no dropout, no gradient."""
    network = cifar10_unet(dtype)
    params = jax.jit(network.init)(jax.random.key(0))
    x, t = jnp.asarray(_images(batch_size)), jnp.full((batch_size,), 500, jnp.int32)
    apply = jax.jit(lambda params, x, t: network.apply(params, x, t, cond={}))

    def program() -> None:
        apply(params, x, t).block_until_ready()

    return program


def _images(batch_size: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (batch_size, *CIFAR10)).astype(np.float32)
