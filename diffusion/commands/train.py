"""Training, from a config to a finished run."""

import contextlib
import dataclasses
import gc
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion import build, devices, keys, references, workdir
from diffusion.commands.console import Refused, refused_together, say
from diffusion.commands.results import Pictures, Reading, results
from diffusion.commands.watching import Watch, watch
from diffusion.config import config as default_config
from diffusion.config import to_json
from diffusion.provenance import provenance
from diffusion.training import soundness
from diffusion.training import state as states
from diffusion.training.checkpoint import Checkpoints
from diffusion.training.feed import Feed
from diffusion.training.hooks import Recorder, painter, saver
from diffusion.training.logs import Logs, NonFiniteLoss
from diffusion.training.loop import Hook, fit
from diffusion.training.state import TrainState
from diffusion.training.step import compile_step, make_train_step


def train(config: ConfigDict, folder: str | Path) -> bool:
    """Trains, or continues, the run of this config in its folder; whether it came to its end.

    Refused: before anything is spent, with what is wrong. NonFiniteLoss: names the last good checkpoint.
    workdir.DiskFull: names the disk; the same command goes on when there is room.
    """
    folder = Path(folder).expanduser()
    job = planned(config, folder)
    _, damaged = standing(job, folder)
    _make_folder(folder, job, len(damaged))
    run, mesh, feed, target, shown, watched = job
    num_params = states.num_elements(target.params)
    say(f"{num_params:,} parameters, {mesh.size} x {jax.devices()[0].device_kind}{_shares(target, mesh)}")
    say(f"data: {feed.words}")
    training, about = config.training, {"config": to_json(config), "num_params": num_params, **provenance()}
    key = jax.random.key(config.seed)
    with _open(folder, training.keep_checkpoints, about, watched, damaged) as checkpoints:
        state = _start(run, checkpoints, target, key, mesh)
        first_step = int(state.step)
        if first_step >= training.num_steps:
            say(f"nothing to train: the run in {folder} has done {first_step} of {training.num_steps} steps.")
            if not shown.last_file.exists():
                with _explained(folder):
                    shown.finish(state)
            return True
        with _explained(folder):
            logs = Logs(folder, first_step=first_step, tensorboard=config.logging.tensorboard)
        step = _compiled(run, mesh, target, feed, key)
        recorder = Recorder(
            logs,
            log_every=training.log_every,
            batch_size=training.batch_size,
            first_step=first_step,
            num_steps=training.num_steps,
            pending=checkpoints.pending(first_step),
        )
        hooks: list[Hook] = [
            recorder,
            painter(lambda s, i: shown.show(s, i, logs), every=training.sample_every, recorder=recorder),
            saver(
                checkpoints,
                every=training.checkpoint_every,
                recorder=recorder,
                score=None if watched is None else lambda s, i: watched.score(s, i, logs),
                score_every=config.evaluation.every,
            ),
        ]
        train_key = keys.stream(key, "train")
        with _explained(folder), _complete(checkpoints), contextlib.closing(logs):
            much = {"num_steps": training.num_steps, "updates": training.steps_per_dispatch}
            state = fit(step, state, feed, key=train_key, mesh=mesh, hooks=hooks, **much)
    if int(state.step) < training.num_steps:
        say(f"stopped at step {int(state.step)} and saved it in {folder}; the same command continues.")
        return False
    with _explained(folder):
        shown.finish(state)
    return True


class Job(NamedTuple):
    """A training that nothing speaks against.

    feed: how batches reach the devices. target: the state's shapes on the mesh.
    shown, watched: what it shows (`results`), and how it is evaluated on the way.
    """

    run: build.Run | build.Guide
    mesh: Mesh
    feed: Feed
    target: TrainState
    shown: Pictures | Reading
    watched: Watch | None

    @property
    def kept(self) -> int:
        """The checkpoints that stay on the disk: the newest ones, and the best."""
        return self.run.config.training.keep_checkpoints + bool(self.run.config.evaluation.every)


def planned(config: ConfigDict, folder: Path) -> Job:
    """The training of this config in this folder; nothing is written. Refused: with what is wrong with either."""
    with refused_together(), _refusing():
        training, evaluation, unguided = config.training, config.evaluation, config.copy_and_resolve_references()
        unguided.guidance.guide = config.guidance.guide and ""
        mesh = devices.training_mesh(config.mesh.fsdp)
        workdir.check(folder, to_json(config), to_json(default_config()))
        run = build.build(unguided)
        devices.check_divides(training.batch_size, mesh.size, "training.batch_size", training.microbatches)
        workdir.check_facts(folder, run.facts._asdict())
        if evaluation.every and evaluation.reference:
            references.read(evaluation.reference)
    with _refusing():  # what each process has by itself is there: from here on they ask each other
        if config.guidance.guide:
            run = dataclasses.replace(build.build(config, run.facts), dataset=run.dataset)
        watched = watch(run) if isinstance(run, build.Run) else None
        return Job(run, mesh, run.feed(mesh), states.abstract(run.new_state, mesh), results(run, folder), watched)


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Turns what is wrong with config, data or folder into a refusal."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise Refused(str(error)) from error


def standing(job: Job, folder: Path) -> tuple[int, Mapping[int, str]]:
    """(updates that the run has done, the damaged checkpoints that training will move out of its way).

    Refused: where nothing is left to go on from, or training cannot go on from there as it is asked to.
    """
    with _refusing():
        damaged = soundness.unsound(folder / "checkpoints")
    done = max(set(workdir.saved_steps(folder)) - damaged.keys(), default=0)
    updates = job.run.config.training.steps_per_dispatch
    if done % updates:
        raise Refused(
            f"training.steps_per_dispatch is {updates}, but the run stands at step {done}, which is no multiple of it; "
            "continue with training.steps_per_dispatch=1."
        )
    return done, damaged


def traced(run: build.Run | build.Guide, mesh: Any, target: TrainState, feed: Feed, key: jax.Array) -> Any:
    """The updates of one dispatch as a program; `compiled` is what training calls.

    key: the run's own, of its seed.
    """
    training, updates = run.config.training, run.config.training.steps_per_dispatch
    ways = {"mesh": mesh, "microbatches": training.microbatches, "ema_warmup": run.config.ema.warmup}
    step = make_train_step(run.loss, run.optimizer, run.ema_decays, **ways)
    program = compile_step(step, mesh, target, read=feed.read, updates=updates)
    return program.trace(target, feed.now(0, mesh, stacked=updates), keys.stream(key, "train"), feed.held)


def compiled(run: build.Run | build.Guide, mesh: Any, target: TrainState, feed: Feed, key: jax.Array) -> Any:
    """The program of one dispatch, compiled: (state, rows, key, held) -> (state, metrics).

    Python's collector of garbage rests meanwhile: it would walk through a trace's objects, none of them garbage, again
    and again.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        return traced(run, mesh, target, feed, key).lower().compile()
    finally:
        if collecting:
            gc.enable()


def _make_folder(folder: Path, job: Job, damaged: int) -> None:
    """Makes the run's folder, if the disk has room for it; Refused if not. damaged: `workdir.space`."""
    with refused_together(), _refusing():
        workdir.check_space(folder, states.num_bytes(job.target), job.kept, damaged)
        folder.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            workdir.write(folder, "config.json", to_json(job.run.config))
            workdir.write(folder, "data.json", job.run.facts._asdict())
            (folder / "samples").mkdir(exist_ok=True)


def _open(
    folder: Path, keep: int, about: dict[str, Any], watched: Watch | None, damaged: Mapping[int, str]
) -> Checkpoints:
    """The run's checkpoints, damaged ones out of the way; Refused where the folder cannot be used."""
    with _refusing():
        measured = "" if watched is None else watched.measured
        return Checkpoints(folder / "checkpoints", keep=keep, measured=measured, about=about, damaged=damaged)


def _shares(target: TrainState, mesh: Mesh) -> str:
    """How much of the state each device holds, where it is shared out."""
    if mesh.shape["fsdp"] == 1:
        return ""
    whole, each = states.num_bytes(target) / 1e6, states.num_bytes_each(target) / 1e6
    return f"; a state of {whole:.3g} MB, {each:.3g} MB on each device"


def _start(
    run: build.Run | build.Guide, checkpoints: Checkpoints, target: TrainState, key: jax.Array, mesh: Any
) -> TrainState:
    """The newest checkpoint's state, or a new one; says which."""
    step = checkpoints.latest_step()
    if step is None:
        return states.create(run.new_state, keys.stream(key, "init"), mesh)
    state = checkpoints.restore(target)
    averages = ", ".join(target.ema)
    say(f"restored step {int(state.step)} from {checkpoints.folder}: parameters, optimizer state, EMA ({averages}).")
    return state


def _compiled(run: build.Run | build.Guide, mesh: Any, target: TrainState, feed: Feed, key: jax.Array) -> Any:
    """The train step, compiled ahead for this state and feed; says how long that took."""
    start = time.perf_counter()
    step = compiled(run, mesh, target, feed, key)
    say(f"train step compiled in {time.perf_counter() - start:.1f} s")
    return step


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Says of a loss that is not finite, and of a full disk, what is left and what helps."""
    try:
        yield
    except NonFiniteLoss as error:
        raise NonFiniteLoss(
            f"{error} Training stopped; {_kept(folder)}. The same command would meet the same numbers "
            "again: train with a lower optimizer.learning_rate or a positive optimizer.clip_norm in another --workdir."
        ) from None
    except OSError as error:
        if isinstance(error, workdir.DiskFull) or not workdir.is_full(error):
            raise
        raise workdir.DiskFull(workdir.full(folder, f"{error}; {_kept(folder)}")) from error


@contextlib.contextmanager
def _complete(checkpoints: Checkpoints) -> Iterator[None]:
    """Ends when the last save is complete, however training ends."""
    try:
        yield
    finally:
        checkpoints.wait()


def _kept(folder: Path) -> str:
    steps = workdir.saved_steps(folder)
    return f"the last good checkpoint, step {steps[-1]}, is in {folder}" if steps else "there was no checkpoint yet"
