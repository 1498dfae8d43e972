"""metrics.jsonl as curves of a few hundred points, however long the training was."""

import json
import math
from array import array
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from diffusion.training.logs import bin_names

MOST_POINTS = 400
"""A curve has at most so many."""

WHOLE = ("loss", "accuracy")
"""The metrics that are drawn, each with its parts by noise level."""
EVALUATION = "evaluation/"
"""What the metrics of a cheap evaluation during training begin with; they are drawn too."""


class Curve(NamedTuple):
    """One metric over the steps; the points may be means of rows, the last step and its value are as logged."""

    steps: Float[np.ndarray, " n"]
    values: Float[np.ndarray, " n"]
    last_step: int
    last: float


def read_curves(file: Path) -> tuple[dict[str, Curve], str]:
    """(the curves by name, what was damaged in words); no file is no curve.

    A last line without its end is a training at work, or one that was killed, and no damage.
    """
    wanted = {name for whole in WHOLE for name in (whole, *bin_names(whole))}
    found: dict[str, tuple[array[float], array[float]]] = defaultdict(lambda: (array("d"), array("d")))
    damaged = []
    try:
        with open(file, "rb") as lines:
            for number, line in enumerate(lines, 1):
                row = _row(line)
                if row is None:
                    damaged += [number] if line.endswith(b"\n") else []
                    continue
                for name, value in row.items():
                    if (name in wanted or name.startswith(EVALUATION)) and _is_number(value):
                        found[name][0].append(row["step"])
                        found[name][1].append(row[name])
    except FileNotFoundError:
        return {}, ""
    except OSError as error:
        return {}, str(error)
    why = f"{len(damaged)} damaged line(s) left out, the first is line {damaged[0]}" if damaged else ""
    return {name: _thinned(np.array(steps), np.array(values)) for name, (steps, values) in found.items()}, why


def by_level(curves: Mapping[str, Curve]) -> tuple[str, dict[str, Curve]]:
    """(loss or accuracy, its curve at each level from noisy to clean); the accuracy where there is one."""
    shown = "accuracy" if "accuracy" in curves else "loss"
    return shown, {level_words(name): curves[name] for name in bin_names(shown) if name in curves}


def watched(curves: Mapping[str, Curve]) -> dict[str, Curve]:
    """What was evaluated during the training, by the name that says how."""
    return {name.removeprefix(EVALUATION): curve for name, curve in curves.items() if name.startswith(EVALUATION)}


def level_words(name: str) -> str:
    """The level of a metric's name: "log-SNR -2 to 2" of "loss/log_snr_-2_to_2", "all" of "loss"."""
    level = name.partition("/")[2]
    return level.replace("log_snr", "log-SNR").replace("_", " ") or "all"


def _row(line: bytes) -> Mapping[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and _is_number(row.get("step")) and row["step"] >= 0 else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _thinned(steps: Float[np.ndarray, " n"], values: Float[np.ndarray, " n"]) -> Curve:
    """At most MOST_POINTS points, each the mean of as many neighbouring rows (one row more or less)."""
    size = min(MOST_POINTS, len(steps))
    parts = np.linspace(0, len(steps), size + 1).round().astype(int)[:-1]
    counts = np.diff([*parts, len(steps)])
    means = [np.add.reduceat(column, parts) / counts for column in (steps, values)]
    return Curve(means[0], means[1], int(steps[-1]), float(values[-1]))
