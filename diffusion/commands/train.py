"""Training, from a config to a finished run."""

import math
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from diffusion import build, devices, keys, workdir
from diffusion.commands.console import Refused, say
from diffusion.commands.results import results
from diffusion.commands.watching import watch
from diffusion.config import config as default_config
from diffusion.config import to_json
from diffusion.provenance import provenance
from diffusion.training import state as states
from diffusion.training.checkpoint import Checkpoints
from diffusion.training.hooks import Recorder, painter, saver
from diffusion.training.logs import Logs, NonFiniteLoss
from diffusion.training.loop import Hook, fit
from diffusion.training.state import TrainState
from diffusion.training.step import compile_step, make_train_step


def train(config: ConfigDict, folder: str | Path) -> bool:
    """Trains, or continues, the run of this config in its folder; whether it came to its end.

    Refused: before anything is spent, with what is wrong. NonFiniteLoss: names the last good checkpoint.
    """
    folder = Path(folder).expanduser()
    try:
        mesh = devices.training_mesh(config.mesh.fsdp)
        run, dataset, target = _prepare(config, folder, mesh)
        shown = results(run, folder)
        watched = watch(run) if isinstance(run, build.Run) else None
    except (ValueError, OSError) as error:
        raise Refused(str(error)) from error
    num_params = sum(leaf.size for leaf in jax.tree.leaves(target.params))
    say(f"{num_params:,} parameters, {mesh.size} x {jax.devices()[0].device_kind}{_shares(target, mesh)}")
    training, about = config.training, {"config": to_json(config), "num_params": num_params, **provenance()}
    key = jax.random.key(config.seed)
    with Checkpoints(folder / "checkpoints", keep=training.keep_checkpoints, about=about) as checkpoints:
        state = _start(run, checkpoints, target, key, mesh)
        first_step = int(state.step)
        if first_step >= training.num_steps:
            say(f"nothing to train: the run in {folder} has done {first_step} of {training.num_steps} steps.")
            if not shown.last_file.exists():
                shown.finish(state)
            return True
        logs = Logs(folder, first_step=first_step, tensorboard=config.logging.tensorboard)
        step = _compiled(run, mesh, target, dataset[first_step], key)
        recorder = Recorder(
            logs,
            log_every=training.log_every,
            batch_size=training.batch_size,
            first_step=first_step,
            num_steps=training.num_steps,
        )
        hooks: list[Hook] = [
            recorder,
            saver(
                checkpoints,
                every=training.checkpoint_every,
                recorder=recorder,
                score=None if watched is None else lambda s, i: watched.score(s, i, logs),
                score_every=config.evaluation.every,
            ),
            painter(lambda s, i: shown.show(s, i, logs), every=training.sample_every, recorder=recorder),
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
        say(f"stopped at step {int(state.step)} and saved it in {folder}; the same command continues.")
        return False
    shown.finish(state)
    return True


def _prepare(config: ConfigDict, folder: Path, mesh: Any) -> tuple[build.Run | build.Guide, Any, TrainState]:
    """(run, training stream, the state's shapes on the mesh), and a folder that is fit for them."""
    workdir.check(folder, to_json(config), to_json(default_config()))
    run, training = build.build(config), config.training
    devices.check_divides(training.batch_size, mesh.size, "training.batch_size", training.microbatches)
    facts = run.facts._asdict()
    workdir.check_facts(folder, facts)
    folder.mkdir(parents=True, exist_ok=True)
    target = states.abstract(run.new_state, mesh)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(target))
    workdir.check_space(folder, size, config.training.keep_checkpoints + bool(config.evaluation.every))
    dataset = run.batches(jax.process_index(), jax.process_count())
    if jax.process_index() == 0:
        workdir.write(folder, "config.json", to_json(config))
        workdir.write(folder, "data.json", facts)
        (folder / "samples").mkdir(exist_ok=True)
    return run, dataset, target


def _shares(target: TrainState, mesh: Any) -> str:
    """How much of the state each device holds, where it is shared out."""
    if mesh.shape["fsdp"] == 1:
        return ""
    leaves = jax.tree.leaves(target)
    held = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    return f"; a state of {size / 1e6:.3g} MB, {held / 1e6:.3g} MB on each device"


def _start(
    run: build.Run | build.Guide, checkpoints: Checkpoints, target: TrainState, key: jax.Array, mesh: Any
) -> TrainState:
    """The newest checkpoint's state, or a new one; says which."""
    step = checkpoints.latest_step()
    if step is None:
        return states.create(run.new_state, keys.stream(key, "init"), mesh)
    state = checkpoints.restore(target)
    averages = ", ".join(target.ema)
    say(f"restored step {step} from {checkpoints.folder}: parameters, optimizer state, EMA ({averages}).")
    return state


def _compiled(run: build.Run | build.Guide, mesh: Any, target: TrainState, batch: Any, key: jax.Array) -> Any:
    """The train step, compiled ahead for this state and batch."""
    start = time.perf_counter()
    config = run.config
    ways = {"mesh": mesh, "microbatches": config.training.microbatches, "ema_warmup": config.ema.warmup}
    step = make_train_step(run.loss, run.optimizer, run.ema_decays, **ways)
    batch = devices.from_local_rows(batch, mesh)
    compiled = compile_step(step, mesh, target).lower(target, batch, keys.stream(key, "train")).compile()
    say(f"train step compiled in {time.perf_counter() - start:.1f} s")
    return compiled


def _last_good(checkpoints: Checkpoints, folder: Path) -> str:
    checkpoints.wait()
    step = checkpoints.latest_step()
    kept = "there was no checkpoint yet" if step is None else f"the last good checkpoint, step {step}, is in {folder}"
    return (
        f"{kept}. The same command would meet the same numbers again: train with a lower optimizer.learning_rate or a "
        "positive optimizer.clip_norm in another --workdir."
    )
