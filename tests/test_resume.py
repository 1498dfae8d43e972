"""Kill the program anywhere, run the same command again: nothing is lost, and nothing differs."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest

from diffusion import build, workdir
from diffusion.training import digests
from diffusion.training.soundness import best_step
from tests.test_commands import leaves, rows

ROOT = Path(__file__).parents[1]
NUM_STEPS = 120

CONFIG = f"""
from diffusion.config import config

def get_config():
    return config(
        data={{"name": "digits"}},
        network={{"name": "mlp", "channels": 16, "num_blocks": 2, "dropout": 0.3}},
        schedule={{"name": "linear_beta_scaled", "num_steps": 25}},
        levels={{"name": "loss_second_moment", "history": 1}},
        optimizer={{"name": "adam", "learning_rate": 1e-3}},
        ema={{"decays": (0.9, 0.99)}},
        training={{
            "num_steps": {NUM_STEPS}, "batch_size": 16, "log_every": 10, "checkpoint_every": 16,
            "keep_checkpoints": 2, "sample_every": 16,
        }},
        logging={{"num_samples": 2, "sample_steps": 2, "tensorboard": True}},
    )
"""

# main.py, in a process that does something to itself at a moment that is the same every time
RUNNER = """
import itertools, os, pathlib, runpy, shutil, signal, sys, threading, time
from diffusion.training import digests, hooks

what, when, delay, number, *sys.argv = sys.argv[1:]
when, delay, number = int(when), float(delay), int(number)
die = lambda: os.kill(os.getpid(), number)
calls = itertools.count(1)

def fill():
    free = shutil.disk_usage(os.environ["FILLED"]).free
    pathlib.Path(os.environ["FILLED"], "filler").write_bytes(bytes(max(0, free - 8192)))

def around(function, before=lambda *given: None, after=lambda *given: None):
    def wrapped(*given, **named):
        call = next(calls) == when
        if call:
            before(*given)
        result = function(*given, **named)
        if call:
            after(*given)
        return result
    return wrapped

def cut(folder, *given, rmtree=shutil.rmtree, **named):
    if pathlib.Path(folder).name == "deleted" and pathlib.Path(folder).exists():
        next(file for file in pathlib.Path(folder).rglob("*") if file.is_file()).unlink()
        die()
    rmtree(folder, *given, **named)

if what == "update":
    hooks.Recorder.__call__ = around(hooks.Recorder.__call__, after=lambda *g: threading.Timer(delay, die).start())
if what == "fill":
    hooks.Recorder.__call__ = around(hooks.Recorder.__call__, after=lambda *g: fill())
if what == "before the digests":
    digests.write = around(digests.write, before=lambda *g: die())
if what == "after the digests":
    digests.write = around(digests.write, after=lambda *g: die())
if what == "deleting":
    shutil.rmtree = cut
if what == "twice":
    hooks.Recorder.__call__ = around(hooks.Recorder.__call__, after=lambda *g: die())
    write = digests.write
    digests.write = lambda *given: (time.sleep(1), die(), time.sleep(1), write(*given))
runpy.run_path("main.py", run_name="__main__")
"""


def program(folder, what="nothing", when=0, delay=0.0, number=signal.SIGKILL, **more):
    """One run of the command, to its end or to the moment at which it kills itself."""
    config = folder.parent / "config.py"
    config.write_text(textwrap.dedent(CONFIG))
    words = ["main.py", f"--config={config}", f"--workdir={folder}"]
    command = [sys.executable, "-c", RUNNER, what, str(when), str(delay), str(int(number)), *words]
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    env = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)} | more
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


SCORES = """
import sys
import jax, numpy as np, optax
from diffusion import devices
from diffusion.training.checkpoint import Checkpoints
from diffusion.training.state import new_state

devices.start_processes()
everywhere = devices.replicated(devices.data_mesh())
found = [[1.5, 2.25, 3.0], [3.0, 2.25, 1.5]][jax.process_index()]
with Checkpoints(sys.argv[1], keep=1) as checkpoints:
    for step, score in enumerate(found, 1):
        state = new_state({"w": np.ones(3, np.float32)}, optax.sgd(1e-3), ("0.5",))._replace(step=np.int32(step))
        checkpoints.save(devices.put(state, everywhere), score)
    checkpoints.wait()
    print(sorted(checkpoints._manager.all_steps()))
"""

SMALL = """
import runpy, sys
import jax
from diffusion import devices

sys.argv = ["main.py", *sys.argv[1:]]
devices.memory_limit = lambda device: 1000 if jax.process_index() else None
runpy.run_path("main.py", run_name="__main__")
"""


OTHERWISE = """
import os, runpy, sys
from diffusion.commands import train

train.SHARED_WITHIN = 1
*same, told = sys.argv[1:]
sys.argv = ["main.py", *same, *(told.split() if os.environ["JAX_PROCESS_ID"] == "1" else [])]
runpy.run_path("main.py", run_name="__main__")
"""


def pair(folder, *flags, program=("main.py",), status=0):
    """Two processes of one job that trains in the folder; what each printed."""
    (folder.parent / "config.py").write_text(textwrap.dedent(CONFIG))
    config = f"--config={folder.parent / 'config.py'}"
    return two_processes(*program, config, f"--workdir={folder}", "--distributed", *flags, status=status)


def two_processes(*words, status=0):
    """Two processes of one job over the loopback, to their end; what each printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    runs = []
    for i in range(2):
        cluster = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(i)}
        options = {
            "env": os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)} | cluster,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        }
        runs.append(subprocess.Popen([sys.executable, *words], cwd=ROOT, text=True, **options))
    outputs = [run.communicate(timeout=200) for run in runs]
    assert [run.returncode for run in runs] == [status, status], outputs
    return outputs


def check_same(folder, whole):
    """Rows of the log, every leaf of the state, and every picture."""
    pictures = {file.name: file.read_bytes() for file in (whole / "samples").iterdir()}
    assert len(pictures) == 2 * (NUM_STEPS // 16)
    assert {file.name: file.read_bytes() for file in (folder / "samples").iterdir()} == pictures
    assert rows(folder) == rows(whole)
    expected, found = leaves(whole, NUM_STEPS), leaves(folder, NUM_STEPS)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    done = program(folder)
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in rows(folder)] == list(range(10, NUM_STEPS + 1, 10))
    return folder


@pytest.mark.slow
def test_a_run_that_was_killed_at_every_kind_of_moment_ends_in_the_same_bits(whole, tmp_path):
    """Kills while it updates, twice; before and after a checkpoint's digests; while one is deleted; SIGTERM.

    SIGTERM comes by itself, and once more while the checkpoint that it asked for is written.
    """
    folder, chance = tmp_path / "killed", random.Random(7)
    moments = [
        {"what": "update", "when": chance.randint(17, 40), "delay": chance.uniform(0, 0.05)},
        {"what": "before the digests", "when": 2},
        {"what": "update", "when": chance.randint(2, 20), "delay": 0.0, "number": signal.SIGTERM},
        {"what": "twice", "when": chance.randint(2, 6), "number": signal.SIGTERM},
        {"what": "after the digests", "when": 1},
        {"what": "deleting"},
        {"what": "update", "when": chance.randint(2, 20), "delay": chance.uniform(0, 0.05)},
    ]
    half_written = 0
    for moment in moments:
        killed = program(folder, **moment)
        stopped = moment.get("number") == signal.SIGTERM
        assert killed.returncode == (3 if stopped else -signal.SIGKILL), (moment, killed.stderr)
        assert "damaged" not in killed.stderr
        half_written += len(list((folder / "checkpoints").glob("*.orbax-checkpoint-tmp")))
        for step in workdir.steps_in(folder / "checkpoints"):
            digests.check(folder / "checkpoints" / str(step))
    assert half_written >= 2, "kills during a save"
    done = program(folder)
    assert done.returncode == 0, done.stderr
    assert "restored step" in done.stdout
    assert "damaged" not in done.stderr
    check_same(folder, whole)
    assert {entry.name for entry in (folder / "checkpoints").iterdir()} == {"112", "120"}


@pytest.mark.slow
def test_a_run_whose_newest_checkpoint_is_damaged_ends_in_the_same_bits(whole, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(whole, folder)
    file = next((folder / "checkpoints/120/state/d").iterdir())
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    done = program(folder)
    assert done.returncode == 0, done.stderr
    assert "step 120: state/d/" in done.stderr
    assert "restored step 112" in done.stdout
    check_same(folder, whole)
    assert {entry.name for entry in (folder / "checkpoints").iterdir()} == {"112", "120", "damaged_120"}


@pytest.mark.slow
def test_a_run_whose_disk_was_full_ends_in_the_same_bits(whole, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        full = program(disk / "run", what="fill", when=36, FILLED=str(disk))
        assert full.returncode == 5, full.stderr
        assert f"error: the disk at {disk} is full" in full.stderr
        assert workdir.steps_in(disk / "run/checkpoints")
        for step in workdir.steps_in(disk / "run/checkpoints"):
            digests.check(disk / "run/checkpoints" / str(step))
        (disk / "filler").unlink()
        done = program(disk / "run")
        assert done.returncode == 0, done.stderr
        assert "restored step" in done.stdout
        check_same(disk / "run", whole)
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
def test_two_processes_that_were_started_in_different_ways_refuse_together(tmp_path):
    for told, words in (
        ("--config.seed=5 --config.training.num_steps=60", f"num_steps: {NUM_STEPS} there, 60 here"),
        (f"--workdir={tmp_path / 'local'}", "is not there for process 1, though process 0 has made it"),
    ):
        (_, _), (_, error) = pair(tmp_path / "two", told, program=("-c", OTHERWISE), status=2)
        assert words in error
        assert "Traceback" not in error


@pytest.mark.slow
def test_two_processes_step_over_a_damaged_checkpoint_together(tmp_path):
    folder = tmp_path / "two"
    short = ["--config.training.sample_every=0", "--config.training.checkpoint_every=8"]
    pair(folder, *short, "--config.training.num_steps=16")
    digests.check(folder / "checkpoints/16")
    expected, logged = build.load(folder, 16).params, rows(folder)
    (folder / "checkpoints/16/pending/metadata").write_text("{}")
    (first, warned), (second, quiet) = pair(folder, *short, "--config.training.num_steps=16")
    assert "restored step 8" in first
    assert "step 16: pending/metadata has changed" in warned
    assert "restored" not in second
    assert "pending/metadata" not in quiet
    assert {entry.name for entry in (folder / "checkpoints").iterdir()} == {"8", "16", "damaged_16"}
    jax.tree.map(np.testing.assert_array_equal, build.load(folder, 16).params, expected)
    assert rows(folder) == logged


@pytest.mark.slow
def test_two_processes_keep_what_the_first_ones_scores_say(tmp_path):
    """Their own scores are in opposite order, as those of hosts that round differently might be."""
    kept = two_processes("-c", SCORES, str(tmp_path))
    assert [out.split("\n")[-2] for out, _ in kept] == ["[1, 3]"] * 2
    assert workdir.steps_in(tmp_path) == [1, 3]
    assert best_step(tmp_path) == 1


@pytest.mark.slow
def test_two_processes_refuse_together_what_one_has_no_memory_for(tmp_path):
    (_, fits), (_, small) = pair(tmp_path / "run", "--mode=dry_run", program=("-c", SMALL), status=2)
    assert "error: another process of this job refuses; what it prints says why." in fits
    assert "a training step takes more memory than a device has" in small
    assert not (tmp_path / "run").exists()
