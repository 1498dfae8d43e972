"""Grids: which noise levels a sampler visits, as a table of `Step`s made on the host in float64.

A sampler is handed (now, to) pairs, so no solver recomputes "the previous t" by a formula of its own. Every
grid runs from the noisiest of its levels down to clean data, ready to be cast to float32 once.
"""

from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from diffusion.sampling.sampler import Sampler
from diffusion.schedules import Schedule
from diffusion.types import Step


def through(
    schedule: Schedule,
    times: tuple[float, ...] | tuple[int, ...] | Int[np.ndarray, " n_plus_1"] | Float[np.ndarray, " n_plus_1"],
) -> Step:
    """The steps that visit the given times in order, from noise down to 0, which is clean data.

    times [n + 1], integers on a chain -> Step with fields [n], float64.
    """
    times = np.asarray(times)
    if times.ndim != 1 or len(times) < 2 or not (np.diff(times) < 0).all() or times[-1] != 0:
        raise ValueError(f"got times {times}, expected at least two, strictly falling, the last being 0 (clean data).")
    now, to = schedule.level(times[:-1]), schedule.level(times[1:])
    return Step(now, to, to.log_snr - now.log_snr)


def all_steps(schedule: Schedule) -> Step:
    """Every step of the chain, T -> T - 1 -> ... -> 0 (DDPM algorithm 2)."""
    return through(schedule, np.arange(schedule.chain_length("grid.name=all_steps"), -1, -1))


def strided(schedule: Schedule, num_steps: int | None = None, spacing: str = "trailing") -> Step:
    """num_steps times, evenly spread, and then clean data; on a chain all T where num_steps is None.

    spacing (Lin et al. 2023, arXiv:2305.08891, table 2), here for T = 1000 and 4 steps:
        "trailing":  1000, 750, 500, 250: starts at pure noise, where sampling starts. Best with few steps.
        "leading":   751, 501, 251, 1: DDIM's published grid; starts below T, so few steps look washed out.
        "linspace":  1000, 667, 334, 1: both ends (iDDPM's respacing).
    num_steps = T gives all steps for each. A continuous path has no first step, so only "trailing" is for it.
    """
    T = schedule.num_steps
    n = T if num_steps is None else num_steps
    if n is None or not 1 <= n <= (T or n):
        limit = f"1..{T}: the schedule's chain has {T} steps" if T else "at least 1: a continuous path has no T"
        raise ValueError(f"got num_steps={n}, expected {limit}.")
    i = np.arange(n, 0, -1)
    if T is None:
        if spacing != "trailing":
            raise ValueError(f"got spacing={spacing!r}, but a continuous path has 'trailing' only.")
        return through(schedule, np.append(schedule.end * i / n, 0))
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


def karras(
    schedule: Schedule,
    num_steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float | None = None,
    rho: float = 7.0,
) -> Step:
    """EDM's grid: (sigma / alpha)^(1/rho) evenly spread from sigma_max to sigma_min, then clean data.

    Karras et al. 2022, arXiv:2206.00364, eq. 5. sigma_max None: the schedule's own noisiest level. On a chain, the
    levels nearest to these.
    """
    sigma_max = float(np.exp(-schedule.level(schedule.end).log_snr / 2)) if sigma_max is None else sigma_max
    if not 0 < sigma_min < sigma_max < np.inf or not rho > 0:
        raise ValueError(
            f"got sigma_min={sigma_min}, sigma_max={sigma_max}, rho={rho}; expected 0 < sigma_min < sigma_max, finite, "
            "and rho > 0. Where the schedule ends in pure noise, give sigma_max, such as 80."
        )
    return _at_log_snr(
        schedule, -2 * rho * np.log(np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), num_steps))
    )


def uniform_log_snr(
    schedule: Schedule, num_steps: int = 50, log_snr_min: float | None = None, log_snr_max: float = 10.0
) -> Step:
    """Log-SNRs evenly spread from log_snr_min to log_snr_max, then clean data (Lu et al. 2022, arXiv:2206.00927).

    log_snr_min None: the schedule's own noisiest level. On a chain, the levels nearest to these.
    """
    low = float(schedule.level(schedule.end).log_snr) if log_snr_min is None else log_snr_min
    if not -np.inf < low < log_snr_max < np.inf:
        raise ValueError(
            f"got log_snr_min={low}, log_snr_max={log_snr_max}; expected finite numbers, rising. Where the "
            "schedule ends in pure noise, give log_snr_min, such as -10."
        )
    return _at_log_snr(schedule, np.linspace(low, log_snr_max, num_steps))


def _at_log_snr(schedule: Schedule, log_snr: Float[np.ndarray, " n"]) -> Step:
    if len(log_snr) < 1:
        raise ValueError("got num_steps=0, expected at least 1.")
    times, T, n = schedule.time_at(log_snr), schedule.num_steps, len(log_snr)
    if T is None and not (times > 0).all():
        clean = log_snr[times <= 0][0]
        raise ValueError(
            f"the path has no level of log-SNR {clean:.3g} (sigma / alpha = {np.exp(-clean / 2):.3g}) before clean "
            "data. Lower grid.log_snr_max, or raise grid.sigma_min to the schedule's."
        )
    if T is not None:
        if n > T:
            raise ValueError(f"got num_steps={n}, expected 1..{T}: the schedule's chain has {T} steps.")
        below = np.arange(n)  # neighbours that share a level give way, so that n steps stay n different ones
        times = np.minimum.accumulate(np.minimum(times, T - below) + below) - below
        times = np.maximum(times, n - below)
    return through(schedule, np.append(times, 0))


def last(steps: Step, share: float) -> Step:
    """The grid's last steps, from a level of less noise on: the share of all steps that is taken, at least one.

    On a strided grid the first level lies at about that share of the schedule's time. share = 1 is the whole grid.
    """
    if not 0 < share <= 1:
        raise ValueError(f"got {share}, expected a share of the grid's steps in (0, 1], such as 0.5; 1 is all of them.")
    n = len(steps.h)
    return _rows(steps, np.arange(n - max(1, round(share * n)), n))


def resampled(steps: Step, jump_length: int = 10, num_resamples: int = 10) -> Step:
    """RePaint's schedule: stretches of jump_length steps, each walked num_resamples times, noised again in between.

    Lugmayr et al. 2022, arXiv:2201.09865, algorithm 1 (their U is num_resamples, with jump_length 1) and appendix.
    x goes back j = jump_length steps after the moves that leave 1, 1 + j, 1 + 2 j, ... to be made, where there are j
    steps to go back; the move to clean data is made once. Going back is no row of its own but `Step.back` of the
    move before it: one draw of q(x_noisier | x) over the whole stretch, which is what j single ones compose to. So
    there are as many rows as moves towards clean data, n + j (num_resamples - 1) times the number of places.

    steps: a grid that runs without a gap, prepared for its sampler (`prepare`). num_resamples = 1 leaves it as it is.
    """
    n, j = len(steps.h), jump_length
    if num_resamples < 1:
        raise ValueError(f"got num_resamples={num_resamples}, expected at least 1; 1 is no resampling.")
    if num_resamples == 1:
        return steps
    if not 1 <= j < n:
        raise ValueError(f"got jump_length={j}, expected 1..{n - 1}: the grid has {n} steps.")
    visited: list[int] = []
    for row in range(n):
        visited.append(row)
        left = n - 1 - row
        if left >= 1 and (left - 1) % j == 0 and row + 1 >= j:
            visited += (num_resamples - 1) * list(range(row + 1 - j, row + 1))
    rows = np.array(visited)
    jumps = np.append(rows[1:] != rows[:-1] + 1, False)
    walked = _rows(steps, rows)
    noisier = _rows(walked.now, np.append(np.arange(1, len(rows)), 0))
    back = jax.tree.map(lambda raised, same: np.where(jumps, raised, same), noisier, walked.to)
    h = np.subtract(walked.to.log_snr, back.log_snr, where=jumps, out=np.zeros(len(rows)))
    return walked._replace(back=Step(back, walked.to, h))


def _rows(tree: Any, index: Int[np.ndarray, " n"]) -> Any:
    """These rows of every column."""
    return jax.tree.map(lambda column: column[index], tree)


def prepare(schedule: Schedule, steps: Step, sampler: Sampler) -> Step:
    """The grid with the further level that this sampler evaluates in each step, if it does (`Sampler.aux`).

    ValueError for a grid that the sampler cannot run on (`Sampler.check`).
    """
    sampler.check(steps)
    if sampler.aux is None:
        return steps._replace(aux=None)
    return steps._replace(aux=schedule.level(schedule.time_at(sampler.aux(steps))))
