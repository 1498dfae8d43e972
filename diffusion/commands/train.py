"""Training, from a config to a finished run."""

import contextlib
import dataclasses
import gc
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion import build, devices, keys, locks, references, workdir
from diffusion.commands.console import Refused, refused_together, refusing, say
from diffusion.commands.results import Pictures, Reading, results
from diffusion.commands.watching import Watch, watch
from diffusion.config import config as default_config
from diffusion.config import to_json
from diffusion.provenance import provenance
from diffusion.training import programs, soundness
from diffusion.training import state as states
from diffusion.training.checkpoint import Checkpoints
from diffusion.training.feed import Feed
from diffusion.training.hooks import Recorder, painter, saver
from diffusion.training.logs import Logs, NonFiniteLoss
from diffusion.training.loop import Hook, Stop, fit, stop_signals
from diffusion.training.state import TrainState
from diffusion.training.step import TrainStep, compile_step, make_train_step

EACH_ITS_OWN = ("data.data_dir", "data.archive", "data.num_workers")
"""Keys that the processes of a job may set in different ways."""

SHARED_WITHIN = 60
"""Seconds after which a network's disk shows on all hosts what one has written; NFS remembers what was not there."""


def train(config: ConfigDict, folder: str | Path) -> bool:
    """Trains, or continues, the run of this config in its folder; whether it came to its end.

    Refused: before anything is spent, with what is wrong. NonFiniteLoss: names the last good checkpoint.
    workdir.DiskFull: names the disk; the same command goes on when there is room.
    """
    folder = Path(folder).expanduser()
    job = planned(config, folder)
    _, damaged = standing(job, folder)
    num_steps, shown = config.training.num_steps, job.shown
    with _kept_folder(folder, job, len(damaged)), _open(folder, job, damaged) as checkpoints:
        state = _start(job, checkpoints)
        first_step = int(state.step)
        if first_step >= num_steps:
            say(f"nothing to train: the run in {folder} has done {first_step} of {num_steps} steps.")
            if devices.on_first_process(lambda: _is_older(shown.last_file, checkpoints)):
                with _explained(folder):
                    shown.finish(state)
            return True
        with stop_signals() as stop:
            state = _updated(job, folder, checkpoints, state, stop)
    if devices.any_process(stop.received) or int(state.step) < num_steps:
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
    with refused_together(), refusing():
        training, evaluation, unguided = config.training, config.evaluation, config.copy_and_resolve_references()
        unguided.guidance.guide = config.guidance.guide and ""
        mesh = devices.training_mesh(config.mesh.fsdp)
        workdir.check(folder, to_json(config), to_json(default_config()))
        run = build.build(unguided)
        devices.check_divides(training.batch_size, mesh.size, "training.batch_size", training.microbatches)
        workdir.check_facts(folder, run.facts._asdict())
        if evaluation.every and evaluation.reference:
            references.read(evaluation.reference)
    _check_agreed(config)  # what each process has by itself is there: from here on they ask each other
    with refusing():
        if config.guidance.guide:
            run = dataclasses.replace(build.build(config, run.facts), dataset=run.dataset)
        watched = watch(run) if isinstance(run, build.Run) else None
        return Job(run, mesh, run.feed(mesh), states.abstract(run.new_state, mesh), results(run, folder), watched)


def _check_agreed(config: ConfigDict) -> None:
    """Refused where this process was started with another config than the first one."""
    own = {key: json.dumps(value) for key, value in workdir.flat(to_json(config)) if not key.startswith(EACH_ITS_OWN)}
    first = devices.of_first_process(own)
    lines = [f"  {k}: {first.get(k)} there, {own.get(k)} here" for k in own | first if own.get(k) != first.get(k)]
    with refused_together():
        if lines:
            raise Refused(
                "this process has another config than the first one of the job:\n" + "\n".join(lines) + "\n"
                "Start all processes with the same flags."
            )


def standing(job: Job, folder: Path) -> tuple[int, Mapping[int, str]]:
    """(updates that the run has done, the damaged checkpoints that training will move out of its way).

    Refused: where nothing is left to go on from, or training cannot go on from there as it is asked to.
    """
    with refusing():
        damaged = soundness.unsound(folder / "checkpoints")
    done = max(set(workdir.saved_steps(folder)) - damaged.keys(), default=0)
    updates = job.run.config.training.steps_per_dispatch
    if done % updates:
        raise Refused(
            f"training.steps_per_dispatch is {updates}, but the run stands at step {done}, which is no multiple of it; "
            f"continue with training.steps_per_dispatch={math.gcd(done, updates)}."
        )
    return done, damaged


def traced(run: build.Run | build.Guide, mesh: Any, target: TrainState, feed: Feed, key: jax.Array) -> Any:
    """The updates of one dispatch as one program, to be looked at; `compiled` is what training calls.

    key: the run's own, of its seed.
    """
    updates = run.config.training.steps_per_dispatch
    program = compile_step(_step(run, mesh), mesh, target, read=feed.read, updates=updates)
    return program.trace(*_given(run, mesh, target, feed, key))


def compiled(run: build.Run | build.Guide, mesh: Any, target: TrainState, feed: Feed, key: jax.Array) -> Any:
    """What does one dispatch, compiled (`training/programs.py`): (state, rows, key, held) -> (state, metrics).

    Python's collector of garbage rests meanwhile: it would walk through a trace's objects, none of them garbage, again
    and again.
    """
    collecting, updates = gc.isenabled(), run.config.training.steps_per_dispatch
    gc.disable()
    try:
        given = _given(run, mesh, target, feed, key)
        ways = {"read": feed.read, "updates": updates, "name": _name(run, given)}
        return programs.compiled(_step(run, mesh), mesh, given, **ways)
    finally:
        if collecting:
            gc.enable()


def _step(run: build.Run | build.Guide, mesh: Any) -> TrainStep:
    """One update of this run, its state on the mesh."""
    ways = {"mesh": mesh, "microbatches": run.config.training.microbatches, "ema_warmup": run.config.ema.warmup}
    return make_train_step(run.loss, run.optimizer, run.ema_decays, **ways)


def _name(run: build.Run | build.Guide, given: programs.Arguments) -> str:
    """What makes it likely that a program is the same as last time: the config, but for what changes no update."""
    config = dict(workdir.flat(to_json(run.config)))
    same = {key: value for key, value in config.items() if key != "seed" and not key.startswith(workdir.MAY_CHANGE)}
    return str((sorted(same.items()), run.facts, jax.tree.map(jax.numpy.shape, given[1])))


def _given(
    run: build.Run | build.Guide, mesh: Any, target: TrainState, feed: Feed, key: jax.Array
) -> programs.Arguments:
    """What the first dispatch of this run is given."""
    rows = feed.now(0, mesh, stacked=run.config.training.steps_per_dispatch)
    return target, rows, jax.eval_shape(lambda: keys.stream(key, "train")), feed.held


@contextlib.contextmanager
def _kept_folder(folder: Path, job: Job, damaged: int) -> Iterator[None]:
    """Makes the run's folder and keeps it for this training; damaged: `workdir.space`.

    Refused: where the disk has no room, or another training is there.
    """
    with contextlib.ExitStack() as stack:
        with refused_together(), refusing():
            workdir.check_space(folder, states.num_bytes(job.target), job.kept, damaged)
            folder.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                stack.enter_context(locks.held(folder / "run.lock"))
                workdir.write(folder, "config.json", to_json(job.run.config))
                workdir.write(folder, "data.json", job.run.facts._asdict())
                (folder / "samples").mkdir(exist_ok=True)
        with refused_together():
            _check_shared(folder)
        yield


def _check_shared(folder: Path) -> None:
    """Refused where the folder is not there for this process, once the first one has made it."""
    for _ in range(SHARED_WITHIN):
        if (folder / "run.lock").exists():
            return
        time.sleep(1)
    raise Refused(
        f"--workdir={folder} is not there for process {jax.process_index()}, though process 0 has made it; expected a "
        "folder on a disk that all hosts share."
    )


def _is_older(file: Path, checkpoints: Checkpoints) -> bool:
    """Whether a file that a training ends with is missing, or was made before its newest checkpoint was."""
    newest = checkpoints.folder / str(checkpoints.latest_step())
    return not file.exists() or file.stat().st_mtime < newest.stat().st_mtime


def _open(folder: Path, job: Job, damaged: Mapping[int, str]) -> Checkpoints:
    """The run's checkpoints, damaged ones out of the way; Refused where the folder cannot be used."""
    config, num_params = job.run.config, states.num_elements(job.target.params)
    about = {"config": to_json(config), "num_params": num_params, **provenance()}
    with refusing():
        measured = "" if job.watched is None else job.watched.measured
        ways = {"keep": config.training.keep_checkpoints, "measured": measured, "about": about, "damaged": damaged}
        return Checkpoints(folder / "checkpoints", **ways)


def _shares(target: TrainState, mesh: Mesh) -> str:
    """How much of the state each device holds, where it is shared out."""
    if mesh.shape["fsdp"] == 1:
        return ""
    whole, each = states.num_bytes(target) / 1e6, states.num_bytes_each(target) / 1e6
    return f"; a state of {whole:.3g} MB, {each:.3g} MB on each device"


def _start(job: Job, checkpoints: Checkpoints) -> TrainState:
    """The newest checkpoint's state, or a new one; says what is trained, and from where."""
    run, mesh, target = job.run, job.mesh, job.target
    kind, num_params = jax.devices()[0].device_kind, states.num_elements(target.params)
    say(f"{num_params:,} parameters, {mesh.size} x {kind}{_shares(target, mesh)}")
    say(f"data: {job.feed.words}")
    step = checkpoints.latest_step()
    if step is None:
        return states.create(run.new_state, keys.stream(jax.random.key(run.config.seed), "init"), mesh)
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


def _updated(job: Job, folder: Path, checkpoints: Checkpoints, state: TrainState, stop: Stop) -> TrainState:
    """The state after the updates that are left, or when asked to stop; its checkpoint is complete, however it ends."""
    config, first_step, key = job.run.config, int(state.step), jax.random.key(job.run.config.seed)
    training, shown, watched = config.training, job.shown, job.watched
    with _explained(folder):
        logs = Logs(folder, first_step=first_step, tensorboard=config.logging.tensorboard)
    step = _compiled(job.run, job.mesh, job.target, job.feed, key)
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
    with _explained(folder), _complete(checkpoints), contextlib.closing(logs):
        return fit(
            step,
            state,
            job.feed,
            key=keys.stream(key, "train"),
            num_steps=training.num_steps,
            mesh=job.mesh,
            updates=training.steps_per_dispatch,
            hooks=hooks,
            stop=stop,
        )


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
