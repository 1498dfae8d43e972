"""What happens between updates: logging, checkpoints, sample grids."""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from diffusion.training.checkpoint import Checkpoints
from diffusion.training.logs import Logs, each_update, summarize
from diffusion.training.loop import Hook
from diffusion.training.state import TrainState


class Recorder:
    """Averages the metrics of each log_every updates into one row, on disk and in the progress bar.

    Until then the metrics stay on the devices, those of a dispatch together. pending: those of the last updates before
    first_step that have no row yet; with them a continued run writes the rows of an uninterrupted one.
    """

    def __init__(
        self,
        logs: Logs,
        *,
        log_every: int,
        batch_size: int,
        first_step: int,
        num_steps: int,
        pending: Sequence[dict[str, Any]] = (),
    ) -> None:
        self._logs, self._log_every = logs, log_every
        self._batch_size, self._num_steps = batch_size, num_steps
        self._pending = [jax.tree.map(lambda value: np.asarray(value)[None], metrics) for metrics in pending]
        self._pending_from = first_step - len(pending)
        self._timed_from = first_step
        self._clock, self._paused = time.perf_counter(), 0.0
        self._shown = jax.process_index() == 0
        quiet = not (self._shown and sys.stderr.isatty())
        self._bar = tqdm(total=num_steps, initial=first_step, unit="step", disable=quiet, dynamic_ncols=True)

    def __call__(self, state: TrainState, step: int, metrics: dict[str, Any], last: bool) -> None:
        """Takes in the metrics of a dispatch."""
        self._pending.append(metrics)
        self._bar.update(len(metrics["loss"]))
        if step % self._log_every == 0 or step == self._num_steps:
            self._write_row(step)
        if last:
            self._bar.close()

    def pending(self) -> list[dict[str, Any]]:
        """The metrics, on the host, of the updates since the last row."""
        return each_update(self._pending)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """For work on a finished state: time in here does not count as training.

        NonFiniteLoss if any update before had a loss or gradient that was not finite, so that such a state
        is neither saved nor drawn from.
        """
        summarize(self._pending_from, self.pending())
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def _write_row(self, step: int) -> None:
        row = summarize(self._pending_from, self.pending())
        now = time.perf_counter()
        seconds = now - self._clock - self._paused
        done = step - self._timed_from
        row["images_per_second"] = self._batch_size * done / seconds
        self._logs.scalars(step, row)
        self._bar.set_postfix_str(f"loss {row['loss']:.4f}, {row['images_per_second']:.0f} images/s")
        if self._shown and self._bar.disable:
            left = (self._num_steps - step) * seconds / done
            print(
                f"step {step}/{self._num_steps}  loss {row['loss']:.4f}  "
                f"{row['images_per_second']:.0f} images/s  about {left / 60:.1f} min left",
                flush=True,
            )
        self._pending, self._pending_from, self._timed_from = [], step, step
        self._clock, self._paused = now, 0.0


def saver(
    checkpoints: Checkpoints,
    *,
    every: int,
    recorder: Recorder,
    score: Callable[[TrainState, int], float] | None = None,
    score_every: int = 0,
) -> Hook:
    """A hook that saves the state every so many updates, and after the last.

    score(state, step): how good the state is, the lower the better; asked every score_every updates (0 is never), and
    the state is saved with it, and with the metrics that the recorder has no row of yet. Put it after every hook that
    writes: a kill before the save is complete has them do their work again, one after it never leaves them out.
    """

    def hook(state: TrainState, step: int, metrics: dict[str, Any], last: bool) -> None:
        scored = score is not None and score_every and step % score_every == 0
        if scored or step % every == 0 or last:
            with recorder.paused():
                value = score(state, step) if score and scored else math.inf
                checkpoints.save(state, value, recorder.pending())

    return hook


def painter(paint: Callable[[TrainState, int], None], *, every: int, recorder: Recorder) -> Hook:
    """A hook that calls paint(state, step) every so many updates; 0 switches it off."""

    def hook(state: TrainState, step: int, metrics: dict[str, Any], last: bool) -> None:
        if every and step % every == 0:
            with recorder.paused():
                paint(state, step)

    return hook
