"""Devices as one mesh: the only place that makes meshes and shardings.

The same code runs on one device, on eight and on a pod. Values are either replicated or split along their
first axis over the mesh's "data" axis; `jax.jit` sees the shardings and inserts the communication.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def data_mesh() -> Mesh:
    """All devices of all processes along one axis, "data" (axis type Auto: the compiler places intermediates)."""
    return Mesh(np.array(jax.devices()), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole value."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The first axis is split evenly over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_divides(batch_size: int, num_devices: int, name: str) -> None:
    """ValueError unless the batch splits evenly over the devices."""
    if batch_size < 1 or batch_size % num_devices:
        up = max(1, -(-batch_size // num_devices)) * num_devices
        raise ValueError(
            f"{name} is {batch_size}, which {num_devices} devices cannot share evenly. "
            f"Use a positive multiple of {num_devices}, such as {up}."
        )


def from_local_rows(tree: Any, mesh: Mesh) -> Any:
    """A batch of this process's rows as global arrays, split over all devices."""
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(split(mesh), rows), tree)


def fetch(array: jax.Array) -> np.ndarray:
    """The whole array on the host of every process."""
    if not array.is_fully_addressable:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def start_processes() -> None:
    """Joins the processes of a pod or cluster into one job; call it before anything else touches JAX.

    The coordinator is found from the environment: TPU pods, Slurm, Open MPI and Kubernetes are known to JAX;
    elsewhere set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID for each process.
    """
    jax.distributed.initialize()
