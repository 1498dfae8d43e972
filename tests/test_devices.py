"""One device, eight, and every core: the same numbers."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from diffusion import build, devices, keys
from diffusion.config import config
from diffusion.training import state as states
from diffusion.training.step import compile_step, make_train_step

ROOT = Path(__file__).parents[1]
NETWORK = {"name": "unet", "channels": 8, "channel_mults": (1,), "num_blocks": 1, "attention_resolutions": ()}


def test_eight_devices_are_one_device():
    """The whole training step: data, levels and their memory, noise, dropout, coins, gradients, Adam, the average."""
    options = {"loss": {"self_conditioning": True}, "levels": {"name": "loss_second_moment", "history": 1}}
    run = build.build(
        config(
            network=NETWORK,
            schedule={"name": "linear_beta_scaled", "num_steps": 25},
            training={"num_steps": 4, "batch_size": 16},
            **options,
        )
    )
    key, dataset, outcomes = jax.random.key(7), run.batches(), []
    for count in (1, 8):
        mesh = Mesh(np.array(jax.devices()[:count]), ("data",))
        step = make_train_step(run.loss, run.optimizer, run.ema_decays)
        compiled = compile_step(step, mesh, states.abstract(run.new_state, mesh))
        state, losses = states.create(run.new_state, keys.stream(key, "init"), mesh), []
        for i in range(4):
            state, metrics = compiled(state, devices.from_local_rows(dataset[i], mesh), key)
            losses.append((float(metrics["loss"]), float(metrics["grad_norm"])))
        outcomes.append(losses)
    np.testing.assert_allclose(*outcomes, rtol=2e-5)
    assert len(set(outcomes[0])) == 4


@pytest.mark.parametrize(("given", "expected"), [("", len(os.sched_getaffinity(0))), ("3", 3)])
def test_one_cpu_device_per_core_unless_the_user_says_how_many(given, expected):
    program = "import jax; from diffusion import devices; devices.one_per_core(); print(len(jax.devices()))"
    environment = os.environ | {"XLA_FLAGS": ""} | ({"JAX_NUM_CPU_DEVICES": given} if given else {})
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert int(found.stdout) == expected


@pytest.mark.parametrize(
    ("count", "batch_size", "first"), [(21, 8, 0), (21, 5, 0), (21, 100, 0), (21, 8, 16), (3, 8, 0)]
)
def test_batches_of_rows_are_shared_evenly_and_hold_every_row_once(count, batch_size, first):
    mesh = devices.data_mesh()
    batches = devices.row_batches(count, batch_size, mesh, first)
    assert {len(rows) for rows in batches} == {-(-min(batch_size, count) // mesh.size) * mesh.size}
    every = np.concatenate(batches)
    np.testing.assert_array_equal(every[: count - first], np.arange(first, count))
    assert (every[count - first :] == count - 1).all()


def test_the_memory_of_a_device_is_what_its_allocator_says_and_of_cpus_their_share_of_the_host():
    class Device:
        platform = "gpu"

        def __init__(self, stats):
            self.memory_stats = lambda: stats

    assert devices.memory_limit(Device({"bytes_limit": 123})) == 123
    assert devices.memory_limit(Device(None)) is None
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < 8 * devices.memory_limit(jax.devices()[0]) <= total


PROGRAM = """
import sys, jax
from diffusion import devices
devices.remember_compilations()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: x * 3)(1.0)
"""


@pytest.mark.parametrize("named", [False, True])
def test_what_is_compiled_is_kept_in_the_users_cache_or_where_the_user_says(tmp_path, named):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "named")} if named else {}
    subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=True)
    [folder] = tmp_path.iterdir()
    assert folder.name == ("named" if named else "home")
    assert any(file.is_file() for file in folder.rglob("jit*"))
