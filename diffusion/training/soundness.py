"""Which checkpoints of a folder are sound, and which is the best: by their digests and scores, before Orbax opens any.

Of several processes the first one alone reads (`devices.on_first_process`), and all are told. `best_step` and `unsound`
see to that themselves; the rest is what the first process is to do.
"""

import contextlib
import itertools
import json
import math
import os
import warnings
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from diffusion import devices, workdir
from diffusion.training import digests


def best_step(folder: Path) -> int | None:
    """The step of the checkpoint with the lowest score of those measured as the newest was; None where none was.

    ValueError where a score is damaged, since the best is not known then. The first process reads, all are told.
    """
    return devices.on_first_process(lambda: _best_step(Path(folder)))


def _best_step(folder: Path) -> int | None:
    for step in workdir.steps_in(folder):
        place = folder / str(step)
        if wrong := _damage(place, within="metrics/"):
            raise ValueError(f"the score of {place} is damaged ({wrong}), so the best is not known: name a step.")
    scores = _scores(folder)
    return _best(scores, _last_measured(scores))


def _best(scores: Mapping[int, Mapping[str, Any]], measured: str) -> int | None:
    """The newest step with the lowest score that was measured so; None where none was."""
    ranked = {step: score(metrics, measured) for step, metrics in scores.items()}
    best = min(ranked, key=lambda step: (ranked[step], -step), default=None)
    return best if best is not None and math.isfinite(ranked[best]) else None


def _scores(folder: Path, without: Container[int] = ()) -> dict[int, Mapping[str, Any]]:
    """What is saved of each checkpoint's score, by step; `without` those whose file is not to be read."""
    steps = [step for step in workdir.steps_in(folder) if step not in without]
    files = {step: Path(folder) / str(step) / "metrics" / "metrics" for step in steps}
    return {step: json.loads(file.read_text()) for step, file in files.items() if file.exists()}


def last_measured(folder: Path) -> str:
    """How the newest score in the folder was measured; "" where there is none."""
    return _last_measured(_scores(folder))


def _last_measured(scores: Mapping[int, Mapping[str, Any]]) -> str:
    return next((scores[s].get("measured", "") for s in sorted(scores, reverse=True) if _finite(scores[s])), "")


def _finite(metrics: Mapping[str, Any]) -> bool:
    return math.isfinite(metrics["score"])


def score(metrics: Mapping[str, Any], measured: str) -> float:
    """The score, or infinity for one that was measured in another way."""
    return metrics["score"] if metrics.get("measured", "") == measured else math.inf


def to_load(folder: Path, step: int | None) -> int:
    """The newest sound step, or the given one if it is; errors and warnings are those of `checkpoint.load_params`."""
    steps = workdir.steps_in(folder)
    if not steps or (step is not None and step not in steps):
        wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
        raise FileNotFoundError(f"no {wanted} in {folder}; there are: {steps or 'none yet'}.")
    found, damaged = _newest_sound(folder, steps if step is None else [step])
    if found is None:
        others = f" Take another one: {[s for s in steps if s != step]}." if step is not None else ""
        raise ValueError(_list(folder, damaged) + others)
    if damaged:
        warnings.warn(f"{_list(folder, damaged)} Step {found} is used, the one before.", stacklevel=2)
    return found


def _newest_sound(folder: Path, steps: Iterable[int]) -> tuple[int | None, dict[int, str]]:
    """(the newest of the steps that is not damaged, what is wrong with newer ones)."""
    damaged = dict[int, str]()
    for step in sorted(steps, reverse=True):
        if not (wrong := _damage(folder / str(step))):
            return step, damaged
        damaged[step] = wrong
    return None, damaged


def _damage(checkpoint: Path, within: str = "") -> str:
    """What is wrong with a checkpoint; "" for nothing, and, with a warning, for one that never had digests."""
    try:
        digests.check(checkpoint, within)
    except digests.Damaged as error:
        return str(error)
    except FileNotFoundError:
        if not (checkpoint / "state").is_dir():
            return "state is missing"
        with contextlib.suppress(OSError, ValueError):
            if "digests" in json.loads((checkpoint / "about" / "metadata").read_text()):
                return f"{digests.NAME} is missing"
        if not within:
            warnings.warn(f"{checkpoint} is older than digests are, so it was not verified.", stacklevel=2)
    return ""


def unsound(folder: Path) -> dict[int, str]:
    """What is wrong with each checkpoint that training moves out of its way as it starts; nothing is moved here.

    These are all that are newer than the newest sound one, all whose score is damaged, and what would be the best if it
    were sound. Arrays of others are not read: nobody asks for them unless by their step. The first process reads (the
    newest and the best whole), all are told. ValueError where there are checkpoints and none is sound.
    """
    return devices.on_first_process(lambda: _unsound(Path(folder)))


def _unsound(folder: Path) -> dict[int, str]:
    steps = workdir.steps_in(folder)
    found, damaged = _newest_sound(folder, steps)
    if steps and found is None:
        raise ValueError(
            f"{_list(folder, damaged)} None is left to go on from. Restore one from a copy, or train in another "
            "--workdir; without its folder checkpoints/ the run begins anew."
        )
    older = [step for step in steps if step not in (found, *damaged)]
    damaged |= {step: wrong for step in older if (wrong := _damage(folder / str(step), within="metrics/"))}
    scores = _scores(folder, without=damaged)
    for measured in {metrics.get("measured", "") for metrics in scores.values()}:
        while (best := _best(scores, measured)) not in (None, found) and (wrong := _damage(folder / str(best))):
            damaged[best] = wrong
            del scores[best]
    return damaged


def move_aside(folder: Path, damaged: Mapping[int, str]) -> None:
    """Renames damaged checkpoints, with a warning that names each, and the one that training goes on from."""
    for step in damaged:
        names = itertools.chain([f"damaged_{step}"], (f"damaged_{step}_{n}" for n in itertools.count(2)))
        os.rename(folder / str(step), next(folder / name for name in names if not (folder / name).exists()))
    if damaged:
        found = max(workdir.steps_in(folder))
        warnings.warn(f"{_list(folder, damaged)} Moved to damaged_*; training goes on from step {found}.", stacklevel=2)


def _list(folder: Path, damaged: Mapping[int, str]) -> str:
    return f"damaged checkpoints in {folder}: {'; '.join(f'step {step}: {wrong}' for step, wrong in damaged.items())}."
