"""What `main.py` does in each mode, also callable from a notebook: train(config, workdir), sample(workdir)."""

import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion import build, devices, images, keys, sampling, workdir
from diffusion.config import to_json
from diffusion.data.scaling import to_uint8
from diffusion.provenance import provenance
from diffusion.training import state as states
from diffusion.training.checkpoint import Checkpoints
from diffusion.training.curve import plot_loss
from diffusion.training.hooks import Recorder, painter, saver
from diffusion.training.logs import Logs, NonFiniteLoss
from diffusion.training.loop import Hook, fit
from diffusion.training.state import TrainState
from diffusion.training.step import compile_step, make_train_step


class Refused(Exception):
    """The user's input cannot be run; the message says what to write instead."""


def train(config: ConfigDict, folder: str | Path) -> bool:
    """Trains, or continues, the run of this config in its folder; whether it came to its end.

    Refused: before anything is spent, with what is wrong. NonFiniteLoss: names the last good checkpoint.
    """
    folder = Path(folder).expanduser()
    mesh = devices.data_mesh()
    try:
        run, dataset, target = _prepare(config, folder, mesh)
    except (ValueError, OSError) as error:
        raise Refused(str(error)) from error
    training, about = config.training, {"config": to_json(config), **provenance()}
    key = jax.random.key(config.seed)
    with Checkpoints(folder / "checkpoints", keep=training.keep_checkpoints, about=about) as checkpoints:
        state = _start(run, checkpoints, target, key, mesh)
        first_step = int(state.step)
        if first_step >= training.num_steps:
            _say(f"nothing to do: the run in {folder} has done {first_step} of {training.num_steps} steps.")
            return True
        logs = Logs(folder, first_step=first_step, tensorboard=config.logging.tensorboard)
        step = _compiled(run, mesh, target, dataset[first_step], key)
        recorder = Recorder(
            logs,
            log_every=training.log_every,
            checkpoint_every=training.checkpoint_every,
            batch_size=training.batch_size,
            first_step=first_step,
            num_steps=training.num_steps,
        )
        hooks: list[Hook] = [
            recorder,
            saver(checkpoints, every=training.checkpoint_every, recorder=recorder),
            painter(lambda s, i: _paint(run, s, i, folder, logs), every=training.sample_every, recorder=recorder),
        ]
        train_key = keys.stream(key, "train")
        try:
            state = fit(step, state, dataset, key=train_key, num_steps=training.num_steps, mesh=mesh, hooks=hooks)
        except NonFiniteLoss as error:
            raise NonFiniteLoss(f"{error} Training stopped; {_last_good(checkpoints, folder)}") from None
        finally:
            logs.close()
        checkpoints.wait()
    if int(state.step) < training.num_steps:
        _say(f"stopped at step {int(state.step)} and saved it in {folder}; the same command continues.")
        return False
    _finish(run, state, folder)
    return True


def _prepare(config: ConfigDict, folder: Path, mesh: Any) -> tuple[build.Run, Any, TrainState]:
    """(run, training stream, the state's shapes on the mesh), and a folder that is fit for them."""
    devices.check_divides(config.training.batch_size, mesh.size, "training.batch_size")
    run = build.build(config)
    target = states.abstract(run.new_state, mesh)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(target))
    workdir.check(folder, to_json(config), size * (config.training.keep_checkpoints + 1))
    dataset = run.batches(jax.process_index(), jax.process_count())
    if jax.process_index() == 0:
        workdir.write(folder, "config.json", to_json(config))
        workdir.write(folder, "data.json", run.facts._asdict())
        (folder / "samples").mkdir(exist_ok=True)
    return run, dataset, target


def _start(run: build.Run, checkpoints: Checkpoints, target: TrainState, key: jax.Array, mesh: Any) -> TrainState:
    """The newest checkpoint's state, or a new one; says which."""
    num_params = sum(leaf.size for leaf in jax.tree.leaves(target.params))
    _say(f"{num_params:,} parameters, {mesh.size} x {jax.devices()[0].device_kind}")
    step = checkpoints.latest_step()
    if step is None:
        return states.create(run.new_state, keys.stream(key, "init"), mesh)
    state = checkpoints.restore(target)
    averages = ", ".join(target.ema)
    _say(f"restored step {step} from {checkpoints.folder}: parameters, optimizer state, EMA ({averages}).")
    return state


def _compiled(run: build.Run, mesh: Any, target: TrainState, batch: Any, key: jax.Array) -> Any:
    """The train step, compiled ahead for this state and batch."""
    start = time.perf_counter()
    step = make_train_step(run.loss, run.optimizer, run.ema_decays, ema_warmup=run.config.ema.warmup)
    batch = devices.from_local_rows(batch, mesh)
    compiled = compile_step(step, mesh, target).lower(target, batch, keys.stream(key, "train")).compile()
    _say(f"train step compiled in {time.perf_counter() - start:.1f} s")
    return compiled


def _paint(run: build.Run, state: TrainState, step: int, folder: Path, logs: Logs | None) -> None:
    """Draws the same samples (fixed ids) with the raw parameters and with the EMA."""
    count = run.config.logging.num_samples
    for name, params in {"raw": state.params, "ema": next(iter(state.ema.values()))}.items():
        model = run.with_params(params)
        num_steps = run.config.logging.sample_steps
        drawn = sampling.generate(
            model, num_samples=count, seed=run.config.seed, num_steps=num_steps, cond=run.cond(count)
        )
        if jax.process_index() == 0:
            images.save_png(folder / "samples" / f"step_{step:07d}_{name}.png", drawn)
            if logs:
                logs.picture(step, f"samples/{name}", images.grid(drawn))


def _finish(run: build.Run, state: TrainState, folder: Path) -> None:
    """The final grid with the run's own sampler and grid, the loss curve, and a line that says where they lie."""
    start, count = time.perf_counter(), run.config.logging.num_samples
    model = run.with_params(next(iter(state.ema.values())))
    drawn = sampling.generate(model, num_samples=count, seed=run.config.seed, cond=run.cond(count))
    if jax.process_index() == 0:
        images.save_png(folder / "samples.png", drawn)
        curve = plot_loss(folder)
        print(f"{count} final samples drawn in {time.perf_counter() - start:.1f} s")
        print(
            f"done: {int(state.step)} steps. Samples: {folder / 'samples.png'}; loss curve: {curve}; "
            f"metrics: {folder / 'metrics.jsonl'}; checkpoints: {folder / 'checkpoints'}"
        )


def _last_good(checkpoints: Checkpoints, folder: Path) -> str:
    checkpoints.wait()
    step = checkpoints.latest_step()
    if step is None:
        return "there was no checkpoint yet."
    return f"the last good checkpoint is step {step} in {folder / 'checkpoints'}, and the same command continues there."


def sample(
    folder: str | Path,
    *,
    num_samples: int = 64,
    sampler: str | None = None,
    num_steps: int | None = None,
    seed: int = 0,
    batch_size: int = 256,
) -> Path:
    """Draws samples from the run in the folder and writes them to <folder>/samples/; the path of the .npz.

    The .npz holds `arr_0`, uint8 [n, h, w, c], the layout that public FID evaluators read; a PNG grid of the
    first 256 and a JSON that says how they were made lie beside it. The config comes from the folder.
    """
    folder = Path(folder).expanduser()
    try:
        run = build.load(folder)
        run = run.with_sampler(sampler) if sampler else run
        grid_steps = len(run.grid(num_steps).h)
    except (ValueError, OSError) as error:
        raise Refused(str(error)) from error
    sampler = sampler or run.config.sampler.name
    start = time.perf_counter()
    drawn = sampling.generate(
        run,
        num_samples=num_samples,
        seed=seed,
        num_steps=num_steps,
        cond=run.cond(num_samples),
        batch_size=batch_size,
        progress=jax.process_index() == 0,
    )
    name = f"{sampler}_{grid_steps}_steps_n{num_samples}_seed{seed}_checkpoint{run.step}"
    file = folder / "samples" / f"{name}.npz"
    if jax.process_index() == 0:
        file.parent.mkdir(exist_ok=True)
        np.savez(file, arr_0=to_uint8(drawn))
        images.save_png(file.with_suffix(".png"), drawn[:256])
        made = {"num_samples": num_samples, "sampler": sampler, "num_steps": grid_steps, "seed": seed}
        made |= {"checkpoint_step": run.step, "ema": next(iter(run.ema_decays)), **provenance()}
        file.with_suffix(".json").write_text(json.dumps(made, indent=2) + "\n")
        seconds = time.perf_counter() - start
        print(f"{num_samples} samples in {seconds:.1f} s: {file} and {file.with_suffix('.png').name} beside it")
    return file


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)
