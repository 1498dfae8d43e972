"""Checkpoints in <workdir>/checkpoints/<step>/, through Orbax, with digests of their files (`digests.py`).

What lies there besides: damaged_<step>, moved aside and never read; <step>.orbax-checkpoint-tmp, one that is being
written; deleted/, old ones on their way out. A checkpoint is whole or has no name: it gets its name when complete,
digests included, and loses it before its first file is removed.
"""

import contextlib
import functools
import json
import logging
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from diffusion import devices, workdir
from diffusion.training import digests, soundness
from diffusion.training.state import TrainState, num_bytes
from diffusion.types import Params

DELETED = "deleted"


class Checkpoints:
    """The checkpoints of one run; use it as a context manager, which waits for writes that are under way.

    folder: where the steps lie. keep: how many of the newest ones are kept, and beside them the one with the lowest
    score. measured: how scores are measured, in a word; only those of the same word compare, and "" is the word of the
    newest score there is. about: what is stored beside each state (config, versions, commit), as JSON. damaged: what
    `soundness.unsound` has said of the folder; None asks it, which reads whole checkpoints.

    Damaged checkpoints are moved aside with a warning, so that training goes on from the one before and the best is a
    sound one (`unsound` says which are looked at). ValueError where all are damaged: then nothing is moved.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int = 3,
        measured: str = "",
        about: Mapping[str, Any] | None = None,
        damaged: Mapping[int, str] | None = None,
    ) -> None:
        _quieten_orbax()
        self.folder = Path(folder).resolve()
        self.about = dict(about or {}) | {"digests": digests.NAME}
        self._saving, self._bytes = 0, 0
        unsound = soundness.unsound(self.folder) if damaged is None else damaged
        devices.on_first_process(lambda: soundness.move_aside(self.folder, unsound))
        self._measured = measured or devices.on_first_process(lambda: soundness.last_measured(self.folder))
        # folders are made before a save returns: where that fails in a thread, other threads wait for it for 20 minutes
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation(keep, self._measured),
            best_fn=functools.partial(soundness.score, measured=self._measured),
            best_mode="min",
            cleanup_tmp_directories=True,
            todelete_subdir=DELETED,
            async_options=ocp.AsyncOptions(
                post_finalization_callback=self._seal, create_directories_asynchronously=False
            ),
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: type[BaseException] | BaseException | TracebackType | None) -> None:
        with self._room():
            self._manager.close()
        self._remove_deleted()

    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step; None where there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, score: float = math.inf, pending: Iterable[Mapping[str, Any]] = ()) -> None:
        """Starts to write the state under its own step, unless that step is there already.

        score: how good it is, the lower the better; one that is not finite counts as not measured. Each process ranks
        checkpoints by itself, so the first one's score is everybody's: hosts may round differently. pending: the
        metrics of the last updates, which the log has no row of yet. workdir.DiskFull if the disk has no room for
        this state, or had none for the one before, whose writing ends here.
        """
        self.wait()
        step = int(state.step)
        if step != self.latest_step():
            self._saving, self._bytes = step, num_bytes(state)
            items = {
                "state": ocp.args.StandardSave(state),
                "about": ocp.args.JsonSave(self.about),
                "pending": ocp.args.JsonSave({"updates": [_to_json(metrics) for metrics in pending]}),
            }
            score = devices.of_first_process(score if math.isfinite(score) else math.inf)
            metrics = {"score": score, "measured": self._measured}
            with self._room():
                self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics)

    def wait(self) -> None:
        """Returns when the last save is complete on disk; the errors are as in `save`."""
        with self._room():
            self._manager.wait_until_finished()
        self._remove_deleted()

    def restore(self, target: TrainState) -> TrainState:
        """The newest state, laid out on the devices as `target` says (shapes with shardings).

        The number of devices may differ from the one that saved. Fields that are None in the target are not looked
        for, so that a state from before they existed is restored too. One without digests that cannot be read is moved
        aside where one before it can be.
        """
        item = {name: value for name, value in target._asdict().items() if value is not None}
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            state, failure = self._try(step, item)
            if not devices.any_process(failure is not None):
                devices.on_first_process(functools.partial(soundness.move_aside, self.folder, damaged))
                self._manager.reload()
                return TrainState(**state)
            has_digests = devices.of_first_process((self.folder / str(step) / digests.NAME).exists())
            if has_digests or step == min(self._manager.all_steps()):
                raise failure or OSError(f"another process cannot read step {step} in {self.folder}.")
            damaged[step] = f"it cannot be read ({str(failure)[:200]})"
        raise FileNotFoundError(f"no checkpoint in {self.folder}.")

    def _try(self, step: int, item: Mapping[str, Any]) -> tuple[Any, Exception | None]:
        """(what is read of a state, None), or (None, what went wrong)."""
        try:
            return _read(self.folder / str(step), item), None
        except (OSError, ValueError, KeyError) as error:
            return None, error

    def pending(self, step: int) -> list[dict[str, np.ndarray]]:
        """What was saved as `pending` beside a state; nothing where the checkpoint is from before it was kept."""
        file = self.folder / str(step) / "pending" / "metadata"
        return [_from_json(metrics) for metrics in json.loads(file.read_text())["updates"]] if file.exists() else []

    def _seal(self) -> None:
        """Writes the digests; Orbax calls it on the first process when all is written, before it gives the name."""
        digests.write(next(self.folder.glob(f"{self._saving}.*")))

    def _remove_deleted(self) -> None:
        if jax.process_index() == 0:
            shutil.rmtree(self.folder / DELETED, ignore_errors=True)

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        """Says what is wrong where a write finds the disk full, and removes what was written of the checkpoint."""
        try:
            yield
        except Exception as error:
            if not workdir.is_full(error):
                raise
            for part in self.folder.glob(f"{self._saving}.*"):
                shutil.rmtree(part, ignore_errors=True)
            kept = workdir.steps_in(self.folder)
            last = f"the last one, step {kept[-1]}, is whole" if kept else "there was none before"
            what = f"the checkpoint of step {self._saving} needs {self._bytes / 1e6:,.2f} MB; {last}"
            raise workdir.DiskFull(workdir.full(self.folder, what)) from error


def preservation(keep: int, measured: str = "") -> Any:
    """Orbax's policy that keeps the newest `keep`, and the newest of those with the lowest score `measured` so."""
    managers = ocp.checkpoint_managers
    score = functools.partial(soundness.score, measured=measured)
    best = managers.BestN(get_metric_fn=score, reverse=True, n=1, keep_checkpoints_without_metrics=False)
    return managers.AnyPreservationPolicy([managers.LatestN(keep), best])


def load_params(folder: Path, params_shape: Params, ema_name: str, step: int | None = None) -> tuple[Params, int]:
    """(one EMA of the parameters, its step) from the newest sound or the given checkpoint; nothing else is read.

    params_shape: the shapes and dtypes of the network's parameters. FileNotFoundError where the folder has
    no (such) checkpoint; ValueError where the given one, or every one, is damaged. Newer ones that are damaged are
    named in a warning. Works on any number of devices: the parameters come to the first one. Of several processes the
    first one reads the digests, and all take the step that it found, or raise what it raises.
    """
    _quieten_orbax()
    folder = Path(folder).resolve()
    found = devices.on_first_process(lambda: soundness.to_load(folder, step))
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shape = {"ema": {ema_name: jax.tree.map(lambda s: _placed(s, place), params_shape)}}
    return _read(folder / str(found), shape)["ema"][ema_name], found


def _to_json(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays as [dtype, numbers], which give the same bits back."""
    arrays = {name: np.asarray(value) for name, value in metrics.items()}
    return {name: [array.dtype.name, array.tolist()] for name, array in arrays.items()}


def _from_json(metrics: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(numbers, jnp.dtype(dtype)) for name, (dtype, numbers) in metrics.items()}


def _read(checkpoint: Path, item: Mapping[str, Any]) -> Any:
    """The part of a checkpoint's state that item names, laid out as its leaves (shapes with shardings) say."""
    restore_args = ocp.checkpoint_utils.construct_restore_args(item)
    args = ocp.args.PyTreeRestore(item, restore_args=restore_args, partial_restore=True)
    with ocp.PyTreeCheckpointer() as reader:
        return reader.restore(checkpoint / "state", args=args)


def _placed(leaf: Any, place: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def _quieten_orbax() -> None:
    """Orbax logs dozens of lines for each save; its warnings and errors stay."""

    def keep(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or "orbax" not in record.pathname

    handler = absl_logging.get_absl_handler()
    if not handler.filters:
        handler.addFilter(keep)
