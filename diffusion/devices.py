"""Devices as one mesh: the only place that makes meshes and shardings.

The same code runs on one device, on eight and on a pod. Values are either replicated or split along their
first axis over the mesh's "data" axis; `jax.jit` sees the shardings and inserts the communication.
"""

import hashlib
import os
import platform
from collections.abc import Callable
from pathlib import Path
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


def each_part(function: Callable[[Any], Any], mesh: Mesh) -> Callable[[Any], Any]:
    """The function of rows, run by each device on its part alone: for what the compiler would gather first.

    A row of the result must depend on the same row of the argument only.
    """
    rows = PartitionSpec("data")
    return jax.shard_map(function, mesh=mesh, in_specs=rows, out_specs=rows)


def check_divides(batch_size: int, num_devices: int, name: str) -> None:
    """ValueError unless the batch splits evenly over the devices."""
    if batch_size < 1 or batch_size % num_devices:
        up = max(1, -(-batch_size // num_devices)) * num_devices
        raise ValueError(
            f"{name} is {batch_size}, which {num_devices} devices cannot share evenly. "
            f"Use a positive multiple of {num_devices}, such as {up}."
        )


def row_batches(count: int, batch_size: int, mesh: Mesh, first: int = 0, *, whole: bool = False) -> list[np.ndarray]:
    """The rows first..count - 1 in batches that the devices share evenly; the last one is filled up with the last row.

    A batch is batch_size rows, rounded up to a multiple of the number of devices, but no more than count rounded up,
    unless it is to be whole, for what is compiled once and called with any count. Cut what comes of them to count.
    """
    size = -(-(batch_size if whole else min(batch_size, count)) // mesh.size) * mesh.size
    return [np.minimum(np.arange(start, start + size), count - 1) for start in range(first, count, size)]


def put(tree: Any, sharding: NamedSharding) -> Any:
    """Host values, the same on every process, as global arrays of that sharding; what is there already stays."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda leaf: _put_everywhere(leaf, sharding), tree)


def _put_everywhere(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and leaf.sharding.device_set == sharding.device_set:
        return leaf
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def any_process(flag: bool) -> bool:
    """Whether the flag is set on any process; every process must ask at the same point."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def of_first_process(value: int) -> int:
    """The value that the first process has; every process must ask at the same point."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.array(value)))


def from_local_rows(tree: Any, mesh: Mesh) -> Any:
    """A batch of this process's rows as global arrays, split over all devices."""
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(split(mesh), rows), tree)


def fetch(array: jax.Array) -> np.ndarray:
    """The whole array on the host of every process."""
    if not array.is_fully_addressable:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def memory_limit(device: Any) -> int | None:
    """The bytes that JAX may take on the device; of a CPU, its share of the host's memory; None where nobody says."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    if device.platform != "cpu" or not hasattr(os, "sysconf"):
        return None
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    container = Path("/sys/fs/cgroup/memory.max")  # "max" for no limit
    allowed = container.read_text().strip() if container.exists() else ""
    return min(total, int(allowed) if allowed.isdigit() else total) // jax.local_device_count()


def remember_compilations() -> None:
    """Keeps what is compiled in the user's cache folder, so that the same program is not compiled twice.

    Each kind of processor has a folder of its own, since machine code for one may not run on another that shares the
    home. JAX_COMPILATION_CACHE_DIR, if set, decides; JAX_ENABLE_COMPILATION_CACHE=False switches it off.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    kind = hashlib.sha256(" ".join(_processor()).encode()).hexdigest()[:8]
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "diffusion" / "compiled" / kind
    jax.config.update("jax_compilation_cache_dir", str(cache))


def _processor() -> list[str]:
    """What machine code depends on: the architecture, and on Linux all that the processor is able to do."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    able = [line for line in lines if line.startswith(("flags", "Features"))]
    return [platform.machine(), platform.processor(), *able[:1]]


def one_per_core() -> None:
    """Makes JAX see one CPU device for each core this process may use; call it before anything else touches JAX.

    XLA spreads a wide layer over the cores by itself, a narrow one hardly: there, a batch split over devices takes
    less time. Where GPUs or TPUs are found they are used as ever, and JAX_NUM_CPU_DEVICES, if set, decides.
    RuntimeError if JAX has started already.
    """
    told = "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not told:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        jax.config.update("jax_num_cpu_devices", cores)


def start_processes() -> None:
    """Joins the processes of a pod or cluster into one job; call it before anything else touches JAX.

    The coordinator is found from the environment: TPU pods, Slurm, Open MPI and Kubernetes are known to JAX;
    elsewhere set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID for each process. ValueError
    where neither is there.
    """
    given = [os.environ.get(f"JAX_{name}") for name in ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")]
    try:
        if all(given):
            jax.distributed.initialize(given[0], int(given[1] or 0), int(given[2] or 0))
        else:
            jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"--distributed found no cluster to join ({error}). On one machine leave the flag out; elsewhere set "
            "JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID for each process."
        ) from error
