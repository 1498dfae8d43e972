"""Small checkpoints for tests: made, damaged, counted."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion import devices
from diffusion.training import state
from diffusion.training.checkpoint import Checkpoints

SHAPE = {"w": jax.ShapeDtypeStruct((3,), jnp.float32)}


def new(step=0):
    params = {"w": jnp.float32([1.5, -2.25, 1e-3]) * (step + 1)}
    return state.new_state(params, optax.adam(1e-3), ("0.5",))._replace(step=jnp.int32(step))


def target():
    return state.abstract(lambda key: new(), devices.data_mesh())


def save(folder, *steps, keep=3, scores=None):
    with Checkpoints(folder, keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(new(step), (scores or {}).get(step, math.inf))


def flip(file, place, bit=0):
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)


def files(folder):
    return sorted(entry.relative_to(folder).as_posix() for entry in folder.rglob("*") if entry.is_file())


def restored_step(folder, keep=3):
    with Checkpoints(folder, keep=keep) as checkpoints:
        found = checkpoints.restore(target())
    jax.tree.map(np.testing.assert_array_equal, found, new(int(found.step)))
    return int(found.step)
