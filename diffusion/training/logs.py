"""Metrics on disk: metrics.jsonl always, TensorBoard events beside it."""

import itertools
import json
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np

from diffusion.losses import LOG_SNR_BINS


class NonFiniteLoss(RuntimeError):
    """The loss or the gradient stopped being a number; nothing is skipped or zeroed silently."""


class Logs:
    """Writes rows of scalars, and pictures; on any process but the first it writes nothing.

    workdir: gets metrics.jsonl (one JSON object a row, with "step") and tensorboard/.
    first_step: the step that training starts from. Rows beyond it, left by a run that was stopped after its
    last checkpoint, are dropped, since those steps are now done again.
    """

    def __init__(self, workdir: Path, *, first_step: int, tensorboard: bool = True) -> None:
        self._file: TextIO | None = None
        self._events: Any = None
        if jax.process_index() == 0:
            _drop_rows_after(workdir / "metrics.jsonl", first_step)
            self._file = open(workdir / "metrics.jsonl", "a", buffering=1)  # noqa: SIM115 (kept open, see close)
            if tensorboard:
                self._events = _events(workdir / "tensorboard", first_step)

    def scalars(self, step: int, row: dict[str, float]) -> None:
        """Appends one row."""
        if self._file:
            self._file.write(json.dumps({"step": step, **row}) + "\n")
        if self._events:
            from tensorboardX import summary

            for name, value in row.items():
                self._event(step, summary.scalar(name, value))
            self._events.flush()

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """A picture, uint8 [h, w, c], for TensorBoard."""
        if self._events:
            from tensorboardX import summary

            self._event(step, summary.image(name, pixels, dataformats="HWC"))
            self._events.flush()

    def _event(self, step: int, content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._events.write_event(Event(wall_time=time.time(), step=step, summary=content))

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._file:
            self._file.close()
        if self._events:
            self._events.close()


def _events(folder: Path, first_step: int) -> Any:
    """A file of TensorBoard events, of which those beyond first_step in older files do not count.

    It is written to at once: tensorboardX's SummaryWriter leaves that to a thread, and waits for ever once the thread
    has met a full disk.
    """
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    folder.mkdir(exist_ok=True)
    events = EventsWriter(str(folder / "events"))
    events.write_event(Event(step=first_step + 1, session_log=SessionLog(status=SessionLog.START)))
    return events


def _drop_rows_after(file: Path, step: int) -> None:
    """Rewrites the log without rows beyond `step` and without a half-written last line, atomically.

    A damaged line before the last one goes too, with a warning.
    """
    if not file.exists():
        return
    lines = file.read_bytes().splitlines()
    steps = [_step_of(line) for line in lines]
    if damaged := [i + 1 for i, there in enumerate(steps[:-1]) if there is None]:
        warnings.warn(f"{file} is damaged; these lines are left out: {damaged}.", stacklevel=2)
    new = file.with_suffix(".new")
    kept = [line for line, there in zip(lines, steps, strict=True) if there is not None and there <= step]
    new.write_bytes(b"".join(line + b"\n" for line in kept))
    os.replace(new, file)


def _step_of(line: bytes) -> int | None:
    """The step of a row; None where it is none, as where the process died in the middle of the line."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return None


def each_update(dispatches: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The metrics of dispatches, [updates, ...] each, as those of one update after the other; one transfer."""
    fetched = jax.device_get(list(dispatches))
    return [{name: value[i] for name, value in each.items()} for each in fetched for i in range(len(each["loss"]))]


def summarize(first_step: int, fetched: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean metrics of consecutive steps, first_step + 1 onwards.

    Losses by noise level are averaged over the samples that fell into each bin. NonFiniteLoss names the
    first step whose loss or gradient is not finite.
    """
    if not fetched:
        return {}
    for i, metrics in enumerate(fetched):
        if not np.isfinite([metrics["loss"], metrics["grad_norm"]]).all():
            raise NonFiniteLoss(
                f"step {first_step + 1 + i}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}."
            )
    names = [name for name in fetched[0] if not name.startswith("bin_")]
    row = {name: float(np.mean([m[name] for m in fetched])) for name in names}
    return by_level(fetched) | row


def by_level(fetched: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of each per-sample metric ("bin_<name>"), over all samples and over those of each log-SNR bin.

    Bins without a sample are left out.
    """
    summed = {k: np.sum([m[k] for m in fetched], axis=0) for k in fetched[0] if k.startswith("bin_")}
    count, row = summed.pop("bin_count"), {}
    for key, sums in summed.items():
        name = key.removeprefix("bin_")
        row[name] = float(sums.sum() / count.sum())
        means = zip(bin_names(name), sums, count, strict=True)
        row |= {place: float(total / size) for place, total, size in means if size}
    return row


def bin_names(name: str) -> list[str]:
    """The names under which a metric of each log-SNR bin is logged, from noisy to clean."""
    edges = [f"{edge:g}" for edge in LOG_SNR_BINS]
    inner = [f"{name}/log_snr_{low}_to_{high}" for low, high in itertools.pairwise(edges)]
    return [f"{name}/log_snr_below_{edges[0]}", *inner, f"{name}/log_snr_above_{edges[-1]}"]
