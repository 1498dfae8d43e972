"""Devices as one mesh: the only place that makes meshes and shardings.

The same code runs on one device, on eight and on a pod. Batches are split along their first axis over all devices;
other values are replicated, but for a training state that does not fit: there each large array may be shared out over
the mesh's "fsdp" axis (fully sharded data parallelism, ZeRO's third stage; Rajbhandari et al. 2019, arXiv:1910.02054).
`jax.jit` sees the shardings and inserts the communication, so neither layout is known to any model.
"""

import hashlib
import math
import os
import pickle
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

T = TypeVar("T")

SMALLEST_SHARE = 2**14
"""Arrays of fewer elements (64 kB of float32) are replicated: gathering them costs more than they weigh."""


def data_mesh() -> Mesh:
    """All devices of all processes along one axis, "data" (axis type Auto: the compiler places intermediates)."""
    return Mesh(np.array(jax.devices()), ("data",))


def training_mesh(fsdp: int = 1) -> Mesh:
    """All devices of all processes as "data" x "fsdp": groups of fsdp neighbours, each with one copy of the state.

    fsdp=1 is plain data parallelism, and the number of devices holds the state once. ValueError where the devices
    make no whole groups.
    """
    count = jax.device_count()
    if fsdp < 1 or count % fsdp:
        fits = ", ".join(str(size) for size in range(1, count + 1) if count % size == 0)
        raise ValueError(
            f"mesh.fsdp is {fsdp}, but {count} devices are to form whole groups of so many. Use one of: {fits}."
        )
    return Mesh(np.array(jax.devices()).reshape(-1, fsdp), ("data", "fsdp"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole value."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """An axis, the first by default, is split evenly over the devices, whatever the mesh's axes."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, mesh.axis_names))


def shared_out(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Where an array of the training state lives, told by its shape alone: split over "fsdp" if it is large enough.

    It is split along its largest axis that fsdp divides, the last of equals, and replicated over "data"; with fewer
    than SMALLEST_SHARE elements, or without such an axis, it is replicated over all.
    """
    parts = mesh.shape.get("fsdp", 1)
    fit = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or math.prod(shape) < SMALLEST_SHARE or not fit:
        return replicated(mesh)
    largest = max(fit, key=lambda axis: (shape[axis], axis))
    return NamedSharding(mesh, PartitionSpec(*[None] * largest, "fsdp"))


def gathered(tree: Any, mesh: Mesh) -> Any:
    """Arrays that are shared out, whole on every device; inside jit, where their gradient is shared out again.

    Left to itself the compiler would rather move the activations of a layer than the parameters.
    """
    if mesh.shape.get("fsdp", 1) == 1:  # they are whole already
        return tree

    def placed(tree: Any, place: Callable[[tuple[int, ...]], NamedSharding]) -> Any:
        return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, place(leaf.shape)), tree)

    @jax.custom_vjp
    def whole(tree: Any) -> Any:
        return placed(tree, lambda shape: replicated(mesh))

    whole.defvjp(lambda tree: (whole(tree), None), lambda _, grads: (placed(grads, lambda s: shared_out(s, mesh)),))
    return whole(tree)


def each_part(function: Callable[[Any], Any], mesh: Mesh) -> Callable[[Any], Any]:
    """The function of rows, run by each device on its part alone: for what the compiler would gather first.

    A row of the result must depend on the same row of the argument only.
    """
    rows = PartitionSpec(mesh.axis_names)
    return jax.shard_map(function, mesh=mesh, in_specs=rows, out_specs=rows)


def check_divides(batch_size: int, num_devices: int, name: str, microbatches: int = 1) -> None:
    """ValueError unless the batch, and each of its micro-batches, splits evenly over the devices."""
    parts = num_devices * microbatches
    if batch_size < 1 or batch_size % parts:
        up = max(1, -(-batch_size // parts)) * parts
        each = f" in each of {microbatches} micro-batches" if microbatches > 1 else ""
        raise ValueError(
            f"{name} is {batch_size}, which {num_devices} devices cannot share evenly{each}. "
            f"Use a positive multiple of {parts}, such as {up}."
        )


def row_batches(count: int, batch_size: int, mesh: Mesh, first: int = 0, *, whole: bool = False) -> list[np.ndarray]:
    """The rows first..count - 1 in batches that the devices share evenly; the last one is filled up with the last row.

    A batch is batch_size rows, rounded up to a multiple of the number of devices, but no more than count rounded up,
    unless it is to be whole, for what is compiled once and called with any count. Cut what comes of them to count.
    """
    size = -(-(batch_size if whole else min(batch_size, count)) // mesh.size) * mesh.size
    return [np.minimum(np.arange(start, start + size), count - 1) for start in range(first, count, size)]


def put(tree: Any, sharding: NamedSharding) -> Any:
    """Host values, the same on every process, as global arrays of that sharding; arrays on these devices are moved."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda leaf: _put_everywhere(leaf, sharding), tree)


def _put_everywhere(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and leaf.sharding.device_set == sharding.device_set:
        return jax.device_put(leaf, sharding)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def any_process(flag: bool) -> bool:
    """Whether the flag is set on any process; every process must ask at the same point."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def of_first_process(value: T) -> T:
    """The value that the first process has, to the last bit; every process must ask at the same point.

    value: whatever pickle takes, such as numbers, words and errors; it only travels within one job.
    """
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    content = pickle.dumps(value)
    filled = -(-len(content) // 1024) * 1024  # few sizes, so that few programs are compiled
    size = int(multihost_utils.broadcast_one_to_all(np.array(filled)))
    padded = np.frombuffer(content[:size].ljust(size, b"\0"), np.uint8)
    return pickle.loads(multihost_utils.broadcast_one_to_all(padded).tobytes())


def on_first_process(function: Callable[[], T]) -> T:
    """What the function returns on the first process, which alone calls it; every process must ask at the same point.

    Where it ends in an error there, every process raises that error, so that none waits for an answer for ever.
    """
    result: T | None = None
    error: Exception | None = None
    if jax.process_index() == 0:
        try:
            result = function()
        except Exception as raised:
            error = raised if _travels(raised) else RuntimeError(repr(raised))
    result, error = of_first_process((result, error))
    if error is not None:
        raise error
    return cast(T, result)


def _travels(error: Exception) -> bool:
    """Whether pickle takes the error there and back."""
    try:
        return isinstance(pickle.loads(pickle.dumps(error)), type(error))
    except Exception:  # whatever its class does when it is taken apart or made again
        return False


def from_local_rows(tree: Any, mesh: Mesh, axis: int = 0) -> Any:
    """A batch of this process's rows as global arrays, split over all devices along the axis that counts the rows."""
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(split(mesh, axis), rows), tree)


def fetch(array: Any) -> np.ndarray:
    """The whole array on the host of every process, all of which must ask."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
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
    kind = hashlib.sha256(" ".join(processor()).encode()).hexdigest()[:8]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "diffusion" / "compiled" / kind
    jax.config.update("jax_compilation_cache_dir", str(cache))


def processor() -> list[str]:
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
        jax.config.update("jax_num_cpu_devices", cores())


def cores() -> int:
    """The processor's cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_processes(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the processes of a pod or cluster into one job; call it before anything else touches JAX.

    coordinator_address: host:port of process 0, which all reach. num_processes: of the job. process_id: this one's
    number, from 0. What is left out is read from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or
    found by JAX, which knows TPU pods, Slurm, Open MPI and Kubernetes. ValueError where that leaves a question open.
    """
    address = coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS")
    try:
        if address is not None and not address.rpartition(":")[2].isdigit():
            raise ValueError(f"the address {address!r} names no port")
        count = os.environ.get("JAX_NUM_PROCESSES") if num_processes is None else num_processes
        own = os.environ.get("JAX_PROCESS_ID") if process_id is None else process_id
        jax.distributed.initialize(address, None if count is None else int(count), None if own is None else int(own))
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"--distributed found no cluster to join ({error}). On one machine leave the flag out; elsewhere say it to "
            "each process: --coordinator_address=host:port --num_processes=N --process_id=0, 1, ..."
        ) from error
