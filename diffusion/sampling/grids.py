"""Grids: which noise levels a sampler visits, as a table of `Step`s made on the host in float64.

A sampler is handed (now, to) pairs, so no solver recomputes "the previous t" by a formula of its own. Every
grid runs from the noisiest of its levels down to clean data, ready to be cast to float32 once.
"""

import numpy as np
from jaxtyping import Int

from diffusion.schedules import Schedule
from diffusion.types import Step


def through(schedule: Schedule, times: tuple[int, ...] | Int[np.ndarray, " n_plus_1"]) -> Step:
    """The steps that visit the given times in order, from noise down to 0, which is clean data.

    times [n + 1] -> Step with fields [n], float64.
    """
    times = np.asarray(times)
    if times.ndim != 1 or len(times) < 2 or (np.diff(times) >= 0).any() or times[-1] != 0:
        raise ValueError(f"got times {times}, expected at least two, strictly falling, the last being 0 (clean data).")
    now, to = schedule.level(times[:-1]), schedule.level(times[1:])
    return Step(now, to, to.log_snr - now.log_snr)


def all_steps(schedule: Schedule) -> Step:
    """Every step of the chain, T -> T - 1 -> ... -> 0 (DDPM algorithm 2)."""
    return through(schedule, np.arange(schedule.num_steps, -1, -1))


def strided(
    schedule: Schedule,
    num_steps: int | None = None,
    spacing: str = "trailing",
) -> Step:
    """num_steps of the chain's T steps, evenly spread, and then clean data; all T where num_steps is None.

    spacing (Lin et al. 2023, arXiv:2305.08891, table 2), here for T = 1000 and 4 steps:
        "trailing":  1000, 750, 500, 250: starts at pure noise, where sampling starts. Best with few steps.
        "leading":   751, 501, 251, 1: DDIM's published grid; starts below T, so few steps look washed out.
        "linspace":  1000, 667, 334, 1: both ends (iDDPM's respacing).
    num_steps = T gives all steps for each.
    """
    T = schedule.num_steps
    n = T if num_steps is None else num_steps
    if not 1 <= n <= T:
        raise ValueError(f"got num_steps={n}, expected 1..{T}: the schedule's chain has {T} steps.")
    i = np.arange(n, 0, -1)
    match spacing:
        case "trailing":
            times = np.rint(i * T / n)
        case "leading":
            times = 1 + (i - 1) * T // n
        case "linspace":
            times = np.rint(np.linspace(T, 1, n))
        case _:
            raise ValueError(f"got spacing={spacing!r}, expected 'trailing', 'leading' or 'linspace'.")
    return through(schedule, np.append(times, 0).astype(int))
