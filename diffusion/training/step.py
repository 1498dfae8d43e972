"""One optimizer update as a pure function, and its compilation over a mesh."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from diffusion import devices, keys
from diffusion.training import ema
from diffusion.training.state import TrainState, shardings

TrainStep = Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, Any]]]


def make_train_step(
    loss_fn: Callable[..., tuple[Any, dict[str, Any]]],
    optimizer: optax.GradientTransformation,
    ema_decays: Mapping[str, float],
    *,
    ema_warmup: bool = False,
) -> TrainStep:
    """train_step(state, batch, key) -> (state, metrics), one update.

    loss_fn(params, batch, key) -> (loss, metrics); ema_decays: decay by name, as in state.ema. Where state.memory is
    not None, loss_fn is given memory=state.memory too, and the next memory is taken from metrics["memory"].
    key is the run's, the same at every step: the step's own is folded from it and state.step, so nothing
    random is carried and a resumed run repeats the uninterrupted one. metrics gains "grad_norm" (before
    clipping).
    """

    def train_step(state: TrainState, batch: Any, key: jax.Array) -> tuple[TrainState, dict[str, Any]]:
        step_key = keys.at_step(key, state.step)
        given = {} if state.memory is None else {"memory": state.memory}
        (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch, step_key, **given)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        averages = ema.update(state.ema, params, ema_decays, step, ema_warmup)
        metrics = {**metrics, "grad_norm": optax.tree.norm(grads)}
        memory = metrics.pop("memory", None)
        return TrainState(step, params, opt_state, averages, memory), metrics

    return train_step


def compile_step(step: TrainStep, mesh: Mesh, state_shape: TrainState) -> Any:
    """The step jitted over the mesh: batch split over its devices, state donated, metrics replicated."""
    state, everywhere = shardings(state_shape, mesh), devices.replicated(mesh)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(state, devices.split(mesh), everywhere),
        out_shardings=(state, everywhere),
    )
