"""What every command says to its user."""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from diffusion import devices


class Refused(Exception):
    """The user's input cannot be run; the message says what to write instead."""


class Failed(Exception):
    """Some of many runs have failed; the message says which, and why."""


def join_cluster(**told: Any) -> None:
    """Makes this process one of a job's, as `devices.start_processes`; Refused where there is no cluster to join."""
    print(
        "joining the other processes of the job, for which this one waits up to 5 minutes", file=sys.stderr, flush=True
    )
    try:
        devices.start_processes(**told)
    except ValueError as error:
        raise Refused(str(error)) from error


def _of_several() -> bool:
    """Whether this process is one of a job's several; asks JAX for no device where it has not joined any."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def leave(status: int) -> int:
    """The exit status; of a job, this process ends at once where what it met is its own.

    The others may be waiting for it, and at its exit JAX would wait for them, and abort after a minute.
    """
    if _of_several():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def unforeseen(error: Exception) -> int:
    """The exit status for an error of a job's process that nobody expects, once it is told; elsewhere it is raised."""
    if not _of_several():
        raise error
    if not isinstance(error, jax.errors.JaxRuntimeError):  # whose traceback, of a connection that is gone, says nothing
        traceback.print_exception(error)
    print(
        f"error: process {jax.process_index()} cannot go on with its job ({type(error).__name__}: "
        f"{str(error).partition(chr(10))[0]}). Where another process was killed, or its machine is gone, start all "
        "again with the same command: the run continues from its last checkpoint.",
        file=sys.stderr,
    )
    return leave(1)


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Turns what is wrong with config, data or folder into a refusal."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise Refused(str(error)) from error


@contextlib.contextmanager
def refused_together() -> Iterator[None]:
    """Has every process refuse if one does: each with its own reason, or with the word that another one has a reason.

    Every process must come through here, and none may wait for others inside. Other errors than Refused are not shared.
    """
    own: Refused | None = None
    try:
        yield
    except Refused as error:
        own = error
    if devices.any_process(own is not None):
        raise own or Refused("another process of this job refuses; what it prints says why.")


def say(text: str) -> None:
    """Prints a line, once for all processes."""
    if jax.process_index() == 0:
        print(text, flush=True)


def quantity(value: float | int, unit: str) -> str:
    """Such as 35.7 MB: three digits and a decimal prefix."""
    power = 0
    while value >= 999.5 and power < 5:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {['', 'k', 'M', 'G', 'T', 'P'][power]}{unit}"


def duration(seconds: float | int) -> str:
    """Such as 25.3 ms, 12.3 s, 4 min 10 s, 5 h 12 min, 3.2 days."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    if seconds < 48 * 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
    return f"{seconds / 86400:.1f} days"


def bar(
    batches: Iterable[np.ndarray], total: int, done: int = 0, *, unit: str = "image", shown: bool = True
) -> Iterator[np.ndarray]:
    """The batches of rows, with a progress bar over rows on the first process; those from `total` on only fill up."""
    from tqdm import tqdm

    with tqdm(total=total, initial=done, unit=unit, disable=not shown or jax.process_index() > 0) as progress:
        for rows in batches:
            yield rows
            progress.update(min(len(rows), total - int(rows[0])))
