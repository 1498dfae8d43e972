"""Checkpoints in <workdir>/checkpoints/<step>/, through Orbax."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from diffusion.training.state import TrainState
from diffusion.types import Params


class Checkpoints:
    """The checkpoints of one run; use it as a context manager, which waits for writes that are under way.

    folder: where the steps lie. keep: how many of the newest ones are kept, and beside them the one with the lowest
    score. about: what is stored beside each state (config, versions, commit), as JSON.
    """

    def __init__(self, folder: Path, *, keep: int = 3, about: Mapping[str, Any] | None = None) -> None:
        _quieten_orbax()
        self.folder = Path(folder).resolve()
        self.about = dict(about or {})
        managers = ocp.checkpoint_managers
        best = managers.BestN(get_metric_fn=_score, reverse=True, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=managers.AnyPreservationPolicy([managers.LatestN(keep), best]),
            best_fn=_score,
            best_mode="min",
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._manager.close()

    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step; None where there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, score: float = math.inf) -> None:
        """Starts to write the state under its own step, unless that step is there already.

        score: how good it is, the lower the better; infinity where it was not measured.
        """
        step = int(state.step)
        if step != self.latest_step():
            items = {"state": ocp.args.StandardSave(state), "about": ocp.args.JsonSave(self.about)}
            self._manager.save(step, args=ocp.args.Composite(**items), metrics={"score": score})

    def wait(self) -> None:
        """Returns when the last save is complete on disk."""
        self._manager.wait_until_finished()

    def restore(self, target: TrainState) -> TrainState:
        """The newest state, laid out on the devices as `target` says (shapes with shardings).

        The number of devices may differ from the one that saved. Fields that are None in the target are not looked
        for, so that a state from before they existed is restored too.
        """
        item = {name: value for name, value in target._asdict().items() if value is not None}
        return TrainState(**_read(self.folder / str(self.latest_step()), item))


def best_step(folder: Path) -> int | None:
    """The step of the checkpoint with the lowest score; None where none was measured."""
    files = {int(file.parts[-3]): file for file in Path(folder).glob("[0-9]*/metrics/metrics")}
    scores = {step: _score(json.loads(file.read_text())) for step, file in files.items()}
    best = min(scores, key=lambda step: (scores[step], -step), default=None)
    return best if best is not None and math.isfinite(scores[best]) else None


def _score(metrics: Mapping[str, Any]) -> float:
    return metrics["score"]


def load_params(folder: Path, params_shape: Params, ema_name: str, step: int | None = None) -> tuple[Params, int]:
    """(one EMA of the parameters, its step) from the newest or the given checkpoint; nothing else is read.

    params_shape: the shapes and dtypes of the network's parameters. FileNotFoundError where the folder has
    no (such) checkpoint. Works on any number of devices: the parameters come to the first one.
    """
    _quieten_orbax()
    folder = Path(folder).resolve()
    steps = sorted(int(entry.name) for entry in folder.glob("*") if entry.name.isdigit())
    if not steps or (step is not None and step not in steps):
        wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
        raise FileNotFoundError(f"no {wanted} in {folder}; there are: {steps or 'none yet'}.")
    step = steps[-1] if step is None else step
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shape = {"ema": {ema_name: jax.tree.map(lambda s: _placed(s, place), params_shape)}}
    return _read(folder / str(step), shape)["ema"][ema_name], step


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
