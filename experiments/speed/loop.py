"""What does training cost besides its compiled step? Prints the input's rate, the loop's overhead and compile times.

PYTHONPATH=. python experiments/speed/loop.py

See README.md beside this file.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]

COMPILE = """
import time, grain, jax, numpy as np
from diffusion import build, devices
from configs.ddpm_cifar10 import get_config
from diffusion.training import state as states
from diffusion.commands.train import compiled
from diffusion.training.feed import Feed

run = build.build(get_config(), build.Facts((32, 32, 3), 256, ()))
mesh = devices.training_mesh()
target = states.abstract(run.new_state, mesh)
feed = Feed(rows=grain.MapDataset.source([{"image": np.zeros((8, 32, 32, 3), np.float32)}]))
start = time.perf_counter()
compiled(run, mesh, target, feed, jax.random.key(0))
print(time.perf_counter() - start)
"""


def input_rate(turns):
    """Images/s of CIFAR-10's shape, flipped at random, from memory: one thread, as the loop reads ahead."""
    from diffusion import devices
    from diffusion.training.feed import feed

    mesh = devices.training_mesh()
    source, rates = feed(cifar(), mesh, on_devices=False, batch_size=128, seed=0, flip=True), []
    for turn in range(turns):
        start = time.perf_counter()
        with contextlib.closing(source.ahead(400 * turn, 400 * (turn + 1), mesh)) as batches:
            count = sum(len(batch["image"]) for batch in batches)
        rates.append(count / (time.perf_counter() - start))
    return np.median(rates)


def cifar():
    """A set of CIFAR-10's size."""
    from diffusion.data.dataset import from_arrays

    return from_arrays(np.random.default_rng(0).integers(0, 256, (50_000, 32, 32, 3), np.uint8))


def from_devices(dataset, batch_size, repeats=300):
    """Seconds that a step's batch takes out of a set that lies on the devices, by itself; the median."""
    import jax

    from diffusion import devices
    from diffusion.training.feed import feed

    mesh = devices.training_mesh()
    source = feed(dataset, mesh, on_devices=True, batch_size=batch_size, seed=0, flip=True)
    read, held, seconds = jax.jit(source.read), devices.put(source.held, devices.replicated(mesh)), []
    for i in range(repeats):
        rows = source.now(i, mesh)
        start = time.perf_counter()
        jax.block_until_ready(read(held, rows))
        seconds.append(time.perf_counter() - start)
    return np.median(seconds)


def dispatches(turns, sizes=(1, 10, 100), num_steps=1000):
    """Seconds of an update of toy_2d, in dispatches of so many; medians of turns side by side."""
    import jax

    from configs.toy_2d import get_config
    from diffusion import build, devices, keys
    from diffusion.commands.train import compiled
    from diffusion.training import state as states
    from diffusion.training.loop import fit

    mesh, found = devices.training_mesh(), []
    config, key = get_config(), keys.stream(jax.random.key(0), "train")
    config.training.num_steps = num_steps
    programs = {}
    for updates in sizes:
        config.training.steps_per_dispatch = updates
        run = build.build(config)
        target, feed = states.abstract(run.new_state, mesh), run.feed(mesh)
        programs[updates] = run, feed, compiled(run, mesh, target, feed, jax.random.key(0))
    for _ in range(turns):
        seconds = []
        for updates, (run, feed, step) in programs.items():
            state = states.create(run.new_state, jax.random.key(1), mesh)
            start = time.perf_counter()
            jax.block_until_ready(fit(step, state, feed, key=key, num_steps=num_steps, mesh=mesh, updates=updates))
            seconds.append((time.perf_counter() - start) / num_steps)
        found.append(seconds)
    return dict(zip(sizes, np.median(found, axis=0), strict=True))


def overhead(turns, num_steps):
    """(seconds of a step alone, seconds of a step in the loop) of ddpm_digits, medians of turns side by side."""
    import jax

    from configs.ddpm_digits import get_config
    from diffusion import build, devices, keys
    from diffusion.commands.train import compiled
    from diffusion.training import state as states
    from diffusion.training.checkpoint import Checkpoints
    from diffusion.training.hooks import Recorder, saver
    from diffusion.training.logs import Logs
    from diffusion.training.loop import fit

    config = get_config()
    run, mesh = build.build(config), devices.training_mesh()
    target = states.abstract(run.new_state, mesh)
    key = keys.stream(jax.random.key(0), "train")
    feed = run.feed(mesh)
    batch, held = feed.now(0, mesh), devices.put(feed.held, devices.replicated(mesh))
    step = compiled(run, mesh, target, feed, jax.random.key(0))

    def alone(state):
        start = time.perf_counter()
        for _ in range(num_steps):
            state, metrics = step(state, batch, key, held)
            jax.block_until_ready(metrics)
        return state, (time.perf_counter() - start) / num_steps

    def looped(state, folder):
        done = int(state.step)
        training = config.training
        with Checkpoints(folder / "checkpoints") as checkpoints:
            logs = Logs(folder, first_step=done)
            counts = {"batch_size": training.batch_size, "first_step": done, "num_steps": done + num_steps}
            recorder = Recorder(logs, log_every=training.log_every, **counts)
            hooks = [recorder, saver(checkpoints, every=training.checkpoint_every, recorder=recorder)]
            start = time.perf_counter()
            state = fit(step, state, feed, key=key, num_steps=done + num_steps, mesh=mesh, hooks=hooks)
            jax.block_until_ready(state)
            seconds = (time.perf_counter() - start) / num_steps
            logs.close()
        return state, seconds

    state, found = states.create(run.new_state, jax.random.key(1), mesh), []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(turns):
            state, bare = alone(state)
            state, whole = looped(state, Path(folder) / str(turn))
            found.append((bare, whole))
    return np.array(found)


def compile_seconds(turns):
    """Seconds until DDPM's CIFAR-10 train step (batch 8) is ready: {where it comes from: the median of so many turns}.

    Each in a process of its own.
    """
    command, found = [sys.executable, "-c", COMPILE], []
    for _ in range(turns):
        with tempfile.TemporaryDirectory() as cache:
            environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PLATFORMS": "cpu"}
            environment["PYTHONPATH"] = str(ROOT)
            cold, kept = (float(subprocess.check_output(command, env=environment, text=True)) for _ in range(2))
            shutil.rmtree(Path(cache) / "programs")
            found.append((cold, kept, float(subprocess.check_output(command, env=environment, text=True))))
    names = ("cold", "from the cache", "from JAX's own cache, after all tracing")
    return dict(zip(names, np.median(found, axis=0), strict=True))


def digits_set():
    """The training digits."""
    from diffusion.data.digits import digits

    return digits("train")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--num_steps", type=int, default=300, help="of each turn of the loop")
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    print("| what | measured |\n|---|---|")
    print(f"| batches of 128 CIFAR-size images, flipped, from memory | {input_rate(args.turns):,.0f} images/s |")
    times = overhead(args.turns, args.num_steps)
    bare, whole = np.median(times, axis=0)
    share = np.median(times[:, 1] / times[:, 0]) - 1
    print(f"| ddpm_digits: the compiled step alone | {1e3 * bare:.2f} ms |")
    print(f"| the same in the loop: input, logs, EMA, a checkpoint | {1e3 * whole:.2f} ms, {share:+.1%} |")
    large, small = from_devices(cifar(), 128), from_devices(digits_set(), 64)
    print(f"| 128 CIFAR-size images, flipped, out of a set on the device | {1e3 * large:.2f} ms |")
    print(f"| the same of ddpm_digits, 64 digits | {1e3 * small:.2f} ms, {small / bare:.2%} of a step |")
    for updates, seconds in dispatches(args.turns).items():
        print(f"| an update of toy_2d, {updates} in a dispatch | {1e3 * seconds:.2f} ms |")
    for name, seconds in compile_seconds(args.turns).items():
        print(f"| CIFAR-10 train step (batch 8) traced and compiled, {name} | {seconds:.2f} s |", flush=True)


if __name__ == "__main__":
    main()
