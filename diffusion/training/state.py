"""What training carries from step to step, and nothing else: no random key, no function."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from diffusion import devices
from diffusion.types import Params


class TrainState(NamedTuple):
    """step: updates done, int32 []. ema: one average of the parameters for each decay, by its name.

    memory: what the loss learns besides the parameters (`levels.AdaptiveLevels`); None for most.
    """

    step: Any
    params: Params
    opt_state: Any
    ema: dict[str, Params]
    memory: Any = None


def new_state(
    params: Params, optimizer: optax.GradientTransformation, ema_names: Iterable[str], memory: Any = None
) -> TrainState:
    """The state at step 0; every average starts at the parameters themselves."""
    averages = {name: jax.tree.map(jnp.copy, params) for name in ema_names}
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), averages, memory)


def shardings(state_shape: TrainState, mesh: Mesh) -> TrainState:
    """Where each leaf of the state lives on the mesh, as `devices.shared_out` says.

    It looks at shapes alone, so the optimizer's moments and the averages lie where their parameters do. The memory of
    the levels is not a parameter: every device reads and writes all of it.
    """
    everywhere = devices.replicated(mesh)
    spread = jax.tree.map(lambda leaf: devices.shared_out(leaf.shape, mesh), state_shape)
    return spread._replace(memory=jax.tree.map(lambda _: everywhere, state_shape.memory))


def abstract(make_state: Callable[[jax.Array], TrainState], mesh: Mesh) -> TrainState:
    """The shapes, dtypes and shardings of the state that make_state(key) would make, with nothing allocated."""
    shape = jax.eval_shape(make_state, jax.random.key(0))
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shape, shardings(shape, mesh)
    )


def averaged(state: TrainState) -> Params:
    """The parameters that samples are drawn with: the first average."""
    return next(iter(state.ema.values()))


def num_elements(tree: Any) -> int:
    """The elements of all leaves together: of parameters, their count."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def num_bytes(tree: Any) -> int:
    """The bytes of all leaves together, each counted once, however many devices hold it."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def num_bytes_each(tree: Any) -> int:
    """The bytes that one device holds of leaves with shardings."""
    shapes = ((leaf.sharding.shard_shape(leaf.shape), leaf.dtype.itemsize) for leaf in jax.tree.leaves(tree))
    return sum(math.prod(shape) * size for shape, size in shapes)


def create(make_state: Callable[[jax.Array], TrainState], key: jax.Array, mesh: Mesh) -> TrainState:
    """make_state(key), born on the mesh: no device ever holds more than its own share."""
    shape = jax.eval_shape(make_state, key)
    # dozens of random initialisers take XLA's CPU compiler longer to optimise than to run unoptimised, by far
    options = {"xla_backend_optimization_level": 0} if mesh.devices.flat[0].platform == "cpu" else None
    return jax.jit(make_state, out_shardings=shardings(shape, mesh), compiler_options=options)(key)
