"""What every command says to its user."""

import contextlib
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
    try:
        devices.start_processes(**told)
    except ValueError as error:
        raise Refused(str(error)) from error


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
