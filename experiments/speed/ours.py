"""Our side: the programs that the benchmark times, made of the library's own parts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion import devices, guidance, keys, levels, losses, parameterization, schedules, weights
from diffusion.networks.unet import unet
from diffusion.sampling import grids, loop
from diffusion.sampling.ancestral import ancestral

CIFAR10 = (32, 32, 3)
DIGITS = (8, 8, 1)
DIGITS_UNET = {"channels": 32, "channel_mults": (1, 2), "num_blocks": 1, "attention_resolutions": (4,), "dropout": 0.0}
"""The network of configs/ddpm_digits.py."""


def count(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def train_step(batch_size: int, dtype: str = "float32") -> Callable[[], None]:
    """One step of the published recipe: noise, dropout 0.1, loss, gradients, Adam, EMA, donated state."""
    network = unet(CIFAR10, dtype=dtype)
    level_sampler = levels.uniform(schedules.linear_beta())
    optimizer = optax.adam(2e-4)

    def loss(params: Any, batch: Any, key: jax.Array) -> Any:
        param, weight = parameterization.eps(), weights.constant()
        return losses.denoising_loss(network.apply, levels=level_sampler, param=param, weight=weight)(
            params, batch, key
        )[0]

    def step(state: Any, batch: Any, key: jax.Array) -> Any:
        params, moments, ema, i = state
        value, grads = jax.value_and_grad(loss)(params, batch, keys.at_step(key, i))
        updates, moments = optimizer.update(grads, moments, params)
        params = optax.apply_updates(params, updates)
        ema = jax.tree.map(lambda e, p: e + (1 - 0.9999) * (p - e), ema, params)
        return (params, moments, ema, i + 1), value

    params = _init(network)
    state = (params, optimizer.init(params), jax.tree.map(jnp.copy, params), jnp.zeros((), jnp.int32))
    batch = {"image": _images(batch_size)}
    step = jax.jit(step, donate_argnums=0)

    def program() -> None:
        nonlocal state
        state, value = step(state, batch, jax.random.key(1))
        jax.block_until_ready((state, value))

    return program


def forward(batch_size: int, dtype: str = "float32") -> Callable[[], None]:
    """One evaluation of the network, no dropout, no gradient."""
    network = unet(CIFAR10, dtype=dtype)
    params = _init(network)
    x, t = _images(batch_size), jnp.full((batch_size,), 500, jnp.int32)
    apply = jax.jit(lambda params, x, t: network.apply(params, x, t, cond={}))

    def program() -> None:
        apply(params, x, t).block_until_ready()

    return program


def sampling(num_samples: int, num_steps: int) -> Callable[[], None]:
    """The first num_steps of DDPM's 1000 ancestral steps for num_samples digits, x_0 clipped, one key per sample.

    The samples are spread over the devices, as `sampling.generate` does it.
    """
    network, schedule, param = unet(DIGITS, **DIGITS_UNET), schedules.linear_beta(), parameterization.eps()
    params = _init(network)
    steps = jax.tree.map(lambda column: column[:num_steps], grids.all_steps(schedule))

    @jax.jit
    def draw(params: Any, base: jax.Array, ids: jax.Array) -> jax.Array:
        def denoise(x: Any, level: Any) -> Any:
            return param.predict(network.apply(params, x, param.cond(level), cond={}), x, level)

        x_T = keys.normal(keys.per_sample(keys.stream(base, "x_T"), ids), DIGITS)
        noise = keys.per_sample(keys.stream(base, "steps"), ids)
        return loop.sample(ancestral("large"), guidance.clip()(denoise), x_T, steps, noise)

    mesh = devices.data_mesh()
    params, base = jax.device_put((params, jax.random.key(0)), devices.replicated(mesh))
    ids = jax.device_put(jnp.arange(num_samples), devices.split(mesh))

    def program() -> None:
        draw(params, base, ids).block_until_ready()

    return program


def matrix_rate(size: int = 8192, repeats: int = 20) -> float:
    """The device's measured bfloat16 rate, in FLOP/s: a chain of square matrix products."""
    import time

    a = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
    chain = jax.jit(lambda a: jax.lax.fori_loop(0, repeats, lambda _, b: a @ b * 0.01, a))
    seconds = []
    for _ in range(4):  # the first one compiles
        start = time.perf_counter()
        chain(a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 * repeats / min(seconds)


def _init(network: Any) -> Any:
    return jax.jit(network.init)(jax.random.key(0))


def _images(batch_size: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (batch_size, *CIFAR10)), jnp.float32)
