"""One optimizer update as a pure function, and its compilation over a mesh."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from diffusion import devices, keys
from diffusion.losses import Loss
from diffusion.training import ema
from diffusion.training.optim import global_norm
from diffusion.training.state import TrainState, shardings
from diffusion.types import Params


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """train_step(state, batch, key) -> (state, metrics), one update, made of two halves.

    of_batch(state, batch, key) -> (gradient, metrics): of the state it reads step, params and memory.
    move(state, gradient, metrics) -> (state, metrics): the optimizer's update, and the averages'.
    """

    of_batch: Callable[[TrainState, Any, jax.Array], tuple[Params, dict[str, Any]]]
    move: Callable[[TrainState, Params, dict[str, Any]], tuple[TrainState, dict[str, Any]]]

    def __call__(self, state: TrainState, batch: Any, key: jax.Array) -> tuple[TrainState, dict[str, Any]]:
        return self.move(state, *self.of_batch(state, batch, key))


def make_train_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    ema_decays: Mapping[str, float],
    *,
    mesh: Mesh | None = None,
    microbatches: int = 1,
    ema_warmup: bool = False,
) -> TrainStep:
    """train_step(state, batch, key) -> (state, metrics), one update.

    ema_decays: decay by name, as in state.ema. The next memory is taken from the loss's metrics.
    mesh: over which the state is shared out, if it is.
    microbatches: in how many pieces the batch is taken, one after another (`gradient`); it is one update all the same.
    key is the run's, the same at every step: the step's own is folded from it and state.step, so nothing
    random is carried and a resumed run repeats the uninterrupted one. metrics gains "grad_norm" (before
    clipping).
    """

    def of_batch(state: TrainState, batch: Any, key: jax.Array) -> tuple[Params, dict[str, Any]]:
        step_key = keys.at_step(key, state.step)
        ways: dict[str, Any] = {"memory": state.memory, "mesh": mesh, "microbatches": microbatches}
        return gradient(loss, state.params, batch, step_key, **ways)

    def move(state: TrainState, grads: Params, metrics: dict[str, Any]) -> tuple[TrainState, dict[str, Any]]:
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        averages = ema.update(state.ema, params, ema_decays, step, ema_warmup)
        metrics = {**metrics, "grad_norm": global_norm(grads)}
        memory = metrics.pop("memory", None)
        return TrainState(step, params, opt_state, averages, memory), metrics

    return TrainStep(of_batch, move)


def gradient(
    loss: Loss,
    params: Any,
    batch: Any,
    key: jax.Array,
    *,
    memory: Any = None,
    mesh: Mesh | None = None,
    microbatches: int = 1,
) -> tuple[Any, dict[str, Any]]:
    """(the gradient that a batch trains with, its metrics), the memory of activations being that of one micro-batch.

    Micro-batch c of k takes the rows c, c + k, c + 2 k, ..., so that each device keeps the rows it has. What a loss
    draws is drawn for the whole batch first, metrics are made of the whole batch last, and the gradients' mean is kept
    in float32: so k micro-batches of b are one batch of k b to rounding. Dropout inside the network is the exception.
    Its masks are drawn for whole activations, so each micro-batch has a key of its own: masks of the same distribution,
    independent over rows and steps, but not those of k = 1.

    mesh: over which the parameters are shared out; each micro-batch gathers them and shares out its gradient.
    """

    def mean_cost(params: Any, rows: Any, key: jax.Array) -> tuple[Any, Any]:
        whole = params if mesh is None else devices.gathered(params, mesh)
        cost, values = loss.per_sample(whole, rows, key)
        return cost.mean(), (cost, values)

    of_rows = jax.grad(mean_cost, has_aux=True)
    rows = loss.draw(batch, key, memory)
    if microbatches == 1:
        grads, (cost, values) = of_rows(params, rows, key)
    else:
        grads, (cost, values) = _in_turn(of_rows, params, rows, keys.stream(key, "micro-batches"), microbatches)
    metrics = {"loss": cost.mean(), **loss.measure(params, rows, values, memory)}
    return loss.finish(grads, values), metrics


def _in_turn(of_rows: Callable[..., Any], params: Any, rows: Any, key: jax.Array, k: int) -> tuple[Any, Any]:
    """of_rows(params, rows, key) -> (gradient, [rows] values) for k parts of the rows: (the mean, all in order)."""

    def add(total: Any, part: tuple[Any, Any]) -> tuple[Any, Any]:
        grads, values = of_rows(params, part[1], keys.at_step(key, part[0]))
        return jax.tree.map(lambda so_far, new: so_far + new / k, total, grads), values

    parts = jax.tree.map(lambda leaf: leaf.reshape(-1, k, *leaf.shape[1:]).swapaxes(0, 1), rows)
    nothing = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, jnp.float32), params)
    grads, values = jax.lax.scan(add, nothing, (jnp.arange(k), parts))
    return grads, jax.tree.map(lambda leaf: leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:]), values)


def compile_step(
    step: Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, Any]]],
    mesh: Mesh,
    state_shape: TrainState,
    *,
    read: Callable[[Any, Any], Any] = lambda held, rows: rows,
    updates: int = 1,
) -> Any:
    """program(state, rows, key, held) -> (state, metrics), jitted over the mesh: so many updates in one dispatch.

    rows, held: what `read` makes a batch of, each update's rows split over the devices, held replicated; with several
    updates rows have one more axis in front, a row of it for each. The state is donated. metrics: those of each update,
    [updates, ...], replicated.
    """

    def program(state: TrainState, rows: Any, key: jax.Array, held: Any) -> tuple[TrainState, Any]:
        def update(state: TrainState, rows: Any) -> tuple[TrainState, dict[str, Any]]:
            return step(state, read(held, rows), key)

        if updates > 1:
            return jax.lax.scan(update, state, rows)
        state, metrics = update(state, rows)
        return state, jax.tree.map(lambda value: value[None], metrics)

    state, everywhere = shardings(state_shape, mesh), devices.replicated(mesh)
    rows = devices.split(mesh, axis=int(updates > 1))
    return jax.jit(
        program,
        donate_argnums=0,
        keep_unused=True,
        in_shardings=(state, rows, everywhere, everywhere),
        out_shardings=(state, everywhere),
    )
