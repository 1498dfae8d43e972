"""The probability-flow ODE with an adaptive solver, which chooses its levels while it runs."""

import functools
from typing import Any

import jax
import numpy as np

from diffusion import ode, sde
from diffusion.paths import Schedule
from diffusion.sampling.sampler import Sampler, stateless
from diffusion.types import Denoiser, Step


@functools.cache
def adaptive_ode(
    schedule: Schedule, rtol: float = 1e-4, atol: float = 1e-4, solver: str = "tsit5", max_steps: int = 1000
) -> Sampler:
    """dx = (alpha' x_0_hat + sigma' eps_hat) dt, in steps of the size that the tolerances allow.

    Song et al. 2020 (arXiv:2011.13456, section 4.3 and eq. 13; appendix D.4 takes a Runge-Kutta method of order 5,
    "dopri5", with tolerances of 1e-5). Needs diffrax: pip install diffrax.

    schedule:    a continuous path, the one that the grid was made from.
    rtol, atol:  bounds of the error of one step, atol + rtol |x|, in root mean square over a sample. No step is longer
                 than 2 in log-SNR either: the estimate of a long step's error may vanish by chance.
    solver:      "bosh3" (order 3), "tsit5", "dopri5" (5) or "dopri8" (8).
    max_steps:   per interval of the grid, refused steps included. A sample that needs more is NaN, and a line is
                 printed that says how many are. (An exception cannot leave a computation that runs on many devices.)

    Every step of the grid is one interval, solved on its own; the last one, to clean data, is x_0_hat. So the grid
    wants two steps, from noise to nearly clean to clean: grid.name=uniform_log_snr or karras with num_steps=2, and
    where the path ends in pure noise (flow) grid.name=through with times such as (1.0, 0.01, 0.0).

    Each sample has step sizes of its own and does not depend on its batch. The denoiser is evaluated once per stage
    for the whole batch, as often as the slowest sample asks, and once more at the start of each step: there a
    self-conditioned denoiser is fed its last estimate, and that evaluation's estimate during the whole interval.

    ValueError for a chain, a wrong option and where diffrax is missing; from `prepare` for a grid of another schedule
    or one whose last step begins in noise.
    """
    run = ode.adaptive("adaptive_ode", schedule, rtol=rtol, atol=atol, solver=solver, max_steps=max_steps)
    stops = _stops(schedule)

    def solve(denoise: Denoiser, x: Any, step: Step) -> Any:
        velocity = sde.probability_flow(schedule, denoise)
        return run(lambda x, s: -velocity(x, -s), x, -step.now.t, -step.to.t, stops)[0]  # s = -t rises

    def move(denoise: Denoiser, x: Any, state: None, step: Step, keys: Any) -> tuple[Any, None]:
        x_0 = denoise(x, step.now).x_0  # outside the branches, to be remembered
        return jax.lax.cond(step.to.sigma > 0, lambda: solve(denoise, x, step), lambda: step.to.alpha * x_0), None

    return Sampler(stateless, move, ode.SOLVERS[solver][1], nfe=None, check=functools.partial(_check_grid, schedule))


def _stops(schedule: Schedule) -> np.ndarray:
    """The times -t, float32, at which every solution stops, as far as float32 and the path reach."""
    times = schedule.time_at(ode.stops_in_log_snr())
    return np.unique(np.float32(-times[(times > 0) & (times < schedule.end)]))


def _check_grid(schedule: Schedule, steps: Step) -> None:
    ode.check_levels("adaptive_ode", schedule, steps)
    log_snr = np.asarray(steps.now.log_snr)
    if not log_snr[-1] > 0:
        raise ValueError(
            f"adaptive_ode got a grid of {len(log_snr)} steps whose last one, a single denoising, begins at log_snr = "
            f"{log_snr[-1]:.3g}; expected nearly clean data, above 0. Use grid.name=uniform_log_snr or karras with "
            "grid.num_steps=2: one step for the solver and one to clean data."
        )
