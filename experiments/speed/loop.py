"""What does training cost besides its compiled step? Prints the input's rate, the loop's overhead and compile times.

PYTHONPATH=. python experiments/speed/loop.py

See README.md beside this file.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]

COMPILE = """
import time, jax, numpy as np
from diffusion import build, devices
from diffusion.config import config
from diffusion.training import state as states
from diffusion.commands.train import traced

run = build.build(config(training={"num_steps": 1}), build.Facts((32, 32, 3), 256, ()))
mesh = devices.training_mesh()
target = states.abstract(run.new_state, mesh)
batch = {"image": np.zeros((8, 32, 32, 3), np.float32)}
start = time.perf_counter()
traced(run, mesh, target, batch, jax.random.key(0)).lower().compile()
print(time.perf_counter() - start)
"""


def input_rate(turns):
    """Images/s of CIFAR-10's shape, flipped at random, from memory: one thread, as the loop reads ahead."""
    from diffusion.data import pipeline
    from diffusion.data.dataset import from_arrays
    from diffusion.training.loop import read_ahead

    images = np.random.default_rng(0).integers(0, 256, (50_000, 32, 32, 3), np.uint8)
    stream = pipeline.batches(from_arrays(images), batch_size=128, seed=0, flip=True)
    rates = []
    for turn in range(turns):
        start = time.perf_counter()
        count = sum(len(batch["image"]) for batch in read_ahead(stream, range(400 * turn, 400 * (turn + 1))))
        rates.append(count / (time.perf_counter() - start))
    return np.median(rates)


def overhead(turns, num_steps):
    """(seconds of a step alone, seconds of a step in the loop) of ddpm_digits, medians of turns side by side."""
    import jax

    from configs.ddpm_digits import get_config
    from diffusion import build, devices, keys
    from diffusion.commands.train import traced
    from diffusion.training import state as states
    from diffusion.training.checkpoint import Checkpoints
    from diffusion.training.hooks import Recorder, saver
    from diffusion.training.logs import Logs
    from diffusion.training.loop import fit

    config = get_config()
    run, mesh = build.build(config), devices.training_mesh()
    target = states.abstract(run.new_state, mesh)
    key = keys.stream(jax.random.key(0), "train")
    stream = run.batches()
    batch = devices.from_local_rows(stream[0], mesh)
    step = traced(run, mesh, target, stream[0], jax.random.key(0)).lower().compile()

    def alone(state):
        start = time.perf_counter()
        for _ in range(num_steps):
            state, metrics = step(state, batch, key)
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
            state = fit(step, state, stream, key=key, num_steps=done + num_steps, mesh=mesh, hooks=hooks)
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


def compile_seconds():
    """(cold, from the cache) of DDPM's CIFAR-10 train step, batch 8, each in a process of its own."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", COMPILE]
        return [float(subprocess.check_output(command, env=environment, text=True)) for _ in range(2)]


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
    cold, cached = compile_seconds()
    print(f"| CIFAR-10 train step compiled, cold | {cold:.1f} s |\n| the same from the cache | {cached:.1f} s |")


if __name__ == "__main__":
    main()
