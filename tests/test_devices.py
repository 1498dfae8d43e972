"""One device, eight, and every core: the same numbers."""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec, SingleDeviceSharding

from diffusion import build, devices, keys
from diffusion.config import config
from diffusion.training import state as states
from diffusion.training.checkpoint import Checkpoints, load_params
from diffusion.training.step import compile_step, make_train_step
from tests.processes import as_processes
from tests.test_commands import rows
from tests.test_main import finished, job

ROOT = Path(__file__).parents[1]
NETWORKS = {
    "mlp": {"name": "mlp", "channels": 8, "num_blocks": 1, "dropout": 0.1},
    "unet": {"name": "unet", "channels": 8, "channel_mults": (1,), "num_blocks": 1, "attention_resolutions": ()},
}


@pytest.mark.parametrize("network", ["mlp", pytest.param("unet", marks=pytest.mark.slow)])
def test_eight_devices_are_one_device(network):
    """The whole training step: data, levels and their memory, noise, dropout, coins, gradients, Adam, the average."""
    options = {"loss": {"self_conditioning": True}, "levels": {"name": "loss_second_moment", "history": 1}}
    run = build.build(
        config(
            network=NETWORKS[network],
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
            state, metrics = compiled(state, devices.from_local_rows(dataset[i], mesh), key, {})
            losses.append((float(metrics["loss"][0]), float(metrics["grad_norm"][0])))
        outcomes.append(losses)
    np.testing.assert_allclose(*outcomes, rtol=2e-5)
    assert len(set(outcomes[0])) == 4


SHARED = {
    "network": {"name": "mlp", "channels": 128, "num_blocks": 1},
    "levels": {"name": "loss_second_moment", "history": 1},
    "schedule": {"name": "linear_beta_scaled", "num_steps": 25},
    "optimizer": {"name": "adam", "learning_rate": 1e-3},
    "training": {"num_steps": 8, "batch_size": 16, "log_every": 1, "checkpoint_every": 4, "sample_every": 0},
    "logging": {"tensorboard": False, "num_samples": 8},
}
"""A run whose layers of 128 channels are just large enough to be shared out."""

LAYOUTS = {"one": (1, 1), "data": (8, 1), "both": (4, 2), "fsdp": (1, 8)}


def layout(name):
    data, fsdp = LAYOUTS[name]
    return Mesh(np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp), ("data", "fsdp"))


@functools.cache
def trained(name, microbatches=1):
    """(losses and gradient norms, state) after three updates."""
    run, mesh, key = build.build(config(**SHARED)), layout(name), jax.random.key(7)
    step = make_train_step(run.loss, run.optimizer, run.ema_decays, mesh=mesh, microbatches=microbatches)
    compiled = compile_step(step, mesh, states.abstract(run.new_state, mesh))
    state, found, dataset = states.create(run.new_state, keys.stream(key, "init"), mesh), [], run.batches()
    for i in range(3):
        state, metrics = compiled(state, devices.from_local_rows(dataset[i], mesh), key, {})
        found.append((float(metrics["loss"][0]), float(metrics["grad_norm"][0])))
    return found, state


@pytest.mark.parametrize(("name", "microbatches"), [("data", 1), ("both", 2), ("fsdp", 1)])
def test_every_layout_has_the_losses_of_one_device(name, microbatches):
    np.testing.assert_allclose(trained(name, microbatches)[0], trained("one")[0], rtol=2e-5)
    assert len({loss for loss, _ in trained("one")[0]}) == 3


def test_large_leaves_lie_in_parts_with_their_moments_and_averages_and_the_rest_everywhere():
    state = trained("fsdp")[1]
    moments, average = state.opt_state[0], state.ema["0.9999"]
    for tree in (state.params, moments.mu, moments.nu, average):
        for leaf in jax.tree.leaves(tree):
            parts = 8 if leaf.size >= devices.SMALLEST_SHARE else 1
            assert {part.data.size for part in leaf.addressable_shards} == {leaf.size // parts}
    assert jax.tree.map(lambda leaf: leaf.sharding.is_fully_replicated, (state.step, state.memory)) == (
        True,
        (True,) * 2,
    )
    large = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.size >= devices.SMALLEST_SHARE)

    def held(state):
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))

    assert large > 0.8 * held(trained("data")[1])
    assert held(trained("data")[1]) - held(state) == large * 7 // 8


def test_a_step_moves_parameters_and_no_activations():
    run, mesh = build.build(config(**SHARED)), layout("both")
    target = states.abstract(run.new_state, mesh)
    large = [leaf for leaf in jax.tree.leaves(target.params) if leaf.size >= devices.SMALLEST_SHARE]
    step = make_train_step(run.loss, run.optimizer, run.ema_decays, mesh=mesh, microbatches=2)
    batch = devices.from_local_rows(run.batches()[0], mesh)
    text = compile_step(step, mesh, target).lower(target, batch, jax.random.key(0), {}).compile().as_text()
    found = re.findall(r" = (\S+) (all-gather|all-to-all|collective-permute)\(", text)
    wide = [shape for shape, kind in found if kind != "all-gather" or shape.startswith("f32[128,")]
    assert len(wide) == len(large) > 1, found


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((3, 3, 64, 128), (None, None, None, "fsdp")),
        ((3, 3, 128, 64), (None, None, "fsdp")),
        ((128, 128), (None, "fsdp")),
        ((129, 128), (None, "fsdp")),
        ((20_000, 3), ("fsdp",)),
        ((129, 131), ()),
        ((127, 128), ()),
        ((16_384,), ("fsdp",)),
        ((), ()),
    ],
)
def test_an_array_is_split_along_its_largest_axis_that_divides(shape, spec):
    assert devices.shared_out(shape, layout("both")).spec == PartitionSpec(*spec)
    assert devices.shared_out(shape, layout("data")).is_fully_replicated
    assert devices.shared_out(shape, devices.data_mesh()).is_fully_replicated


@pytest.mark.parametrize(("of", "to"), [("fsdp", "one"), ("fsdp", "data"), ("data", "both"), ("one", "fsdp")])
def test_a_checkpoint_of_one_layout_is_restored_on_another(tmp_path, of, to):
    run, saved = build.build(config(**SHARED)), trained(of)[1]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(saved)
        checkpoints.wait()
        target = states.abstract(run.new_state, layout(to))
        restored = checkpoints.restore(target)
    jax.tree.map(np.testing.assert_array_equal, restored, saved)
    jax.tree.map(lambda leaf, wanted: assert_lies(leaf, wanted.sharding), restored, target)
    params, step = load_params(tmp_path, jax.eval_shape(run.network.init, jax.random.key(0)), "0.9999")
    assert step == 3
    jax.tree.map(np.testing.assert_array_equal, params, saved.ema["0.9999"])
    jax.tree.map(lambda leaf: assert_lies(leaf, SingleDeviceSharding(jax.devices()[0])), params)


class TestTheFirstProcess:
    @pytest.mark.parametrize(
        "value",
        [0.1 + 2**-54, -(2**53) - 1, float("inf"), "höher" * 999, {2: None}],
    )
    def test_its_value_is_everybodys_to_the_last_bit(self, monkeypatch, value):
        others = [value, 0, "another process has something else"]
        assert as_processes(monkeypatch, 3, lambda i: devices.of_first_process(others[i])) == [value] * 3
        assert devices.of_first_process(value) == value

    def test_it_alone_works_and_its_error_is_everybodys(self, monkeypatch):
        called = []
        assert (
            as_processes(monkeypatch, 3, lambda i: devices.on_first_process(lambda: called.append(i) or i)) == [0] * 3
        )
        assert called == [0]
        ended = as_processes(monkeypatch, 3, lambda i: devices.on_first_process(lambda: {}[f"key {i}"]))
        assert [repr(error) for error in ended] == ["KeyError('key 0')"] * 3
        with pytest.raises(KeyError, match="key 7"):
            devices.on_first_process(lambda: {}["key 7"])


def assert_lies(leaf, sharding):
    assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


@pytest.mark.slow
def test_two_processes_and_every_layout_train_and_continue_as_one_device_does(tmp_path):
    """Real jobs over the loopback: two processes, four devices; what one layout saved, another continues."""
    blocks = {block: options for block, options in SHARED.items() if block != "training"}
    words = [f"--config.{block}.{key}={value}" for block, options in blocks.items() for key, value in options.items()]
    words = ["--config=configs/ddpm_digits.py", *words]
    words += [f"--config.training.{key}={value}" for key, value in SHARED["training"].items() if key != "num_steps"]

    def train(name, processes, num_steps, fsdp, count=1, k=1):
        more = [f"--config.training.num_steps={num_steps}", f"--config.mesh.fsdp={fsdp}"]
        more += [f"--config.training.microbatches={k}"]
        finished(job(tmp_path / name, processes, *words, *more, devices=count))

    train("one", 1, 8, 1)
    train("data", 2, 8, 1, count=2)
    train("fsdp", 2, 4, 4, count=2)
    train("fsdp", 1, 6, 1, k=2)
    train("fsdp", 2, 8, 2, count=2, k=2)
    wanted = rows(tmp_path / "one")
    assert [row["step"] for row in wanted] == list(range(1, 9))
    for name in ("data", "fsdp"):
        for one, other in zip(wanted, rows(tmp_path / name), strict=True):
            assert other == pytest.approx(one, rel=1e-4)
    models = [build.load(tmp_path / name) for name in ("one", "fsdp")]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *(model.params for model in models))


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
