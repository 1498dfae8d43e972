"""Side by side timing: two programs take turns in one process, and only their ratio is reported."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

Program = Callable[[], None]
"""Does the work once and returns when it is done (devices included)."""


class Row(NamedTuple):
    """One line of the table: median seconds, median of the ratios of neighbouring turns, ratio of the minima."""

    name: str
    ours: float
    peer: float
    ratio: float
    ratio_of_minima: float
    turns: int


def compare(name: str, ours: Program, peer: Program, *, turns: int, repeats: int = 1, pause: float = 0.2) -> Row:
    """Times ours, peer, ours, peer, ... after one warm-up of each.

    A machine that is busy with something else slows both of a pair, so the ratio is taken pair by pair. It need not
    slow both alike: where the ratio and that of the minima disagree, repeat on a quieter machine.
    repeats:  calls per turn, timed together.
    pause:    seconds of rest before a turn: thread pools keep spinning for a moment after their work.
    """
    ours(), peer()
    pairs = []
    for turn in range(turns):
        order = (ours, peer) if turn % 2 == 0 else (peer, ours)
        seconds = {program: _time(program, repeats, pause) for program in order}
        pairs.append((seconds[ours], seconds[peer]))
    median, (mine, other) = statistics.median, zip(*pairs, strict=True)
    ratio = median(b / a for a, b in pairs)
    return Row(name, median(mine), median(other), ratio, min(other) / min(mine), turns)


def _time(program: Program, repeats: int, pause: float) -> float:
    time.sleep(pause)
    start = time.perf_counter()
    for _ in range(repeats):
        program()
    return (time.perf_counter() - start) / repeats


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table; ratio = peer's time / our time, above 1 where ours is faster."""
    lines = ["| row | ours (s) | peer (s) | peer / ours | of the minima | turns |", "|---|---|---|---|---|---|"]
    for r in rows:
        lines.append(
            f"| {r.name} | {r.ours:.4g} | {r.peer:.4g} | **{r.ratio:.2f}** | {r.ratio_of_minima:.2f} | {r.turns} |"
        )
    return "\n".join(lines)
