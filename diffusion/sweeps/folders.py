"""How far each point of a sweep is, as its folder says.

Beside what every run writes, a point's folder holds

    point.json    which point it is ("index", "config", "overrides"), and how it ended ("ended", "why")
    point.lock    locked while a process trains the point, so that no second one does
    log.txt       what the point said, where the local launcher started it

A folder is known by its index, so a sweep whose points have moved must not go on in the folders of before: `clash` says
which point a folder holds.
"""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from diffusion import locks, workdir
from diffusion.config import config as default_config
from diffusion.config import to_json
from diffusion.sweeps.points import Point, words

FILE, LOCK, LOG = "point.json", "point.lock", "log.txt"
Kind = Literal["done", "running", "failed", "begun", "not begun", "another point"]
Ending = Literal["done", "stopped", "failed"]


class State(NamedTuple):
    """How far a point is. saved: the step of its newest checkpoint. why: if failed, or another point's folder."""

    kind: Kind
    saved: int = 0
    why: str = ""


def state(point: Point, base: Path, points: Sequence[Point]) -> State:
    """How far the point is. base: the folder that holds the points' folders. points: all of the sweep's."""
    folder = base / point.name
    steps = workdir.saved_steps(folder)
    saved = steps[-1] if steps else 0
    if why := clash(point, base, points):
        return State("another point", saved, why)
    if locks.is_held(folder / LOCK):
        return State("running", saved)
    there = _read(folder)
    if there is None or (not steps and _identity(there) != _identity(_record(point))):
        return State("begun", saved) if steps else State("not begun")
    if there["ended"] == "done" and saved >= point.config.training.num_steps:
        return State("done", saved)
    if there["ended"] == "failed":
        return State("failed", saved, there["why"])
    return State("begun", saved)


def clash(point: Point, base: Path, points: Sequence[Point]) -> str:
    """What another point the folder holds checkpoints of; an empty string where this point may go on in it.

    That is a config that differs in more than `workdir.MAY_CHANGE`; or one that the sweep now gives another index,
    which tells points apart that differ in nothing else.
    """
    folder = base / point.name
    if not workdir.saved_steps(folder):
        return ""
    there = _read(folder)
    if there is not None and _identity(there) != _identity(_record(point)):
        for other in points:
            if _identity(_record(other)) == _identity(there):
                return f"{folder} holds what is point {other.number} now ({other.words}), not point {point.number}."
    changed = workdir.differing(folder, to_json(point.config), to_json(default_config()))
    if not changed:
        return ""
    was = "" if there is None else f", begun as point {there['index']} ({words(there['config'], there['overrides'])})"
    keys = "; ".join(f"{key}: {then} there, {now} now" for key, (then, now) in changed.items())
    return f"{folder} holds another run than point {point.number} ({point.words}){was}. {keys}."


def held(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Keeps the folder for this process; ValueError where another one trains the point."""
    return locks.held(folder / LOCK)


def record(point: Point, base: Path, ended: Ending | None, why: str = "") -> None:
    """Writes down which point the folder holds, and how its last start ended: None while it has not."""
    workdir.write(base / point.name, FILE, _record(point) | {"ended": ended, "why": why})


def _record(point: Point) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(dict(point.overrides)))
    return {"index": point.number, "config": point.file, "overrides": plain}


def _identity(record: dict[str, Any]) -> tuple[Any, ...]:
    return record["config"], record["overrides"]


def _read(folder: Path) -> dict[str, Any] | None:
    return workdir.read(folder, FILE) if (folder / FILE).exists() else None
