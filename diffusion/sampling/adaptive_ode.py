"""The probability-flow ODE with an adaptive solver, which chooses its levels while it runs."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import sde
from diffusion.paths import Schedule
from diffusion.sampling.sampler import Sampler, stateless
from diffusion.types import Denoiser, Step, expand

SOLVERS = {"bosh3": "Bosh3", "dopri5": "Dopri5", "dopri8": "Dopri8", "tsit5": "Tsit5"}
"""Explicit Runge-Kutta methods with an error estimate: their names here and in diffrax."""


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
    _check_options(schedule, rtol, atol, solver, max_steps)
    diffrax = _diffrax()
    method = getattr(diffrax, SOLVERS[solver])()
    controller = diffrax.ClipStepSizeController(diffrax.PIDController(rtol, atol), step_ts=-_stations(schedule))

    def solve(denoise: Denoiser, x: Any, step: Step) -> Any:
        velocity = _by_row(sde.probability_flow(schedule, denoise), x, step.now.t)
        rising = diffrax.ODETerm(lambda s, row, i: -velocity(-s, row, i))  # s = -t, as diffrax picks first steps

        def one(row: Any, i: Any) -> Any:
            solution = diffrax.diffeqsolve(
                rising,
                method,
                -step.now.t,
                -step.to.t,
                None,
                row,
                args=i,
                stepsize_controller=controller,
                adjoint=diffrax.ForwardMode(),
                max_steps=max_steps,
                throw=False,
            )
            return solution.ys[-1], solution.result == diffrax.RESULTS.successful

        return _nan_where_unfinished(*jax.vmap(one)(x, jnp.arange(len(x))))

    def move(denoise: Denoiser, x: Any, state: None, step: Step, keys: Any) -> tuple[Any, None]:
        x_0 = denoise(x, step.now).x_0  # outside the branches, to be remembered
        return jax.lax.cond(step.to.sigma > 0, lambda: solve(denoise, x, step), lambda: step.to.alpha * x_0), None

    return Sampler(stateless, move, method.order(None), nfe=None, check=functools.partial(_check_grid, schedule))


def _stations(schedule: Schedule) -> np.ndarray:
    """The times, float32, at which every solution stops: all 2 in log-SNR, as far as float32 and the path reach."""
    times = schedule.time_at(np.arange(-20.0, 21.0, 2.0))
    return np.unique(np.float32(times[(times > 0) & (times < schedule.end)]))


def _by_row(flow: Callable[[Any, Any], Any], x: Any, t: Any) -> Callable[[Any, Any, Any], Any]:
    """(t, x[i], i) -> row i of flow(x [batch, ...], t [batch]): under `vmap` over all rows one call of flow.

    What flow closes over (parameters, labels) becomes arguments, since a batching rule may not close over the values
    of an outer computation.
    """
    n = len(x)
    traced = jax.make_jaxpr(flow)(x, jnp.broadcast_to(t, n))

    def whole(x: Any, t: Any, closed_over: Any) -> Any:
        return jax.core.eval_jaxpr(traced.jaxpr, closed_over, x, jnp.broadcast_to(t, n))[0]

    @jax.custom_batching.custom_vmap
    def one(t: Any, row: Any, i: Any, closed_over: Any) -> Any:
        return whole(jnp.broadcast_to(row, (n, *row.shape)), t, closed_over)[i]

    @one.def_vmap
    def all_at_once(size: int, batched: Any, t: Any, rows: Any, i: Any, closed_over: Any) -> tuple[Any, bool]:
        return whole(rows if batched[1] else jnp.broadcast_to(rows, (n, *rows.shape)), t, closed_over), True

    return lambda t, row, i: one(t, row, i, traced.consts)


def _nan_where_unfinished(x: Any, finished: Any) -> Any:
    failed = (~finished).sum()
    text = "adaptive_ode: {} of {} samples did not arrive in max_steps and are NaN; raise max_steps, rtol or atol."
    jax.lax.cond(failed > 0, lambda: jax.debug.print(text, failed, len(x)), lambda: None)
    return jnp.where(expand(finished, x), x, jnp.nan)


def _diffrax() -> Any:
    try:
        import diffrax
    except ImportError as error:
        raise ValueError("adaptive_ode needs diffrax: pip install diffrax") from error
    return diffrax


def _check_options(schedule: Schedule, rtol: float, atol: float, solver: str, max_steps: int) -> None:
    if schedule.num_steps is not None:
        raise ValueError(
            f"adaptive_ode follows a continuous path, but the schedule is a chain of {schedule.num_steps} steps. "
            "Use schedule.name=vp_linear, sub_vp_linear, ve_geometric, edm or flow."
        )
    if not (rtol > 0 and atol > 0 and max_steps >= 1):
        raise ValueError(f"got rtol={rtol}, atol={atol}, max_steps={max_steps}; expected positive numbers.")
    if solver not in SOLVERS:
        raise ValueError(f"got solver={solver!r}, expected one of {', '.join(SOLVERS)}.")


def _check_grid(schedule: Schedule, steps: Step) -> None:
    log_snr = np.asarray(steps.now.log_snr)
    with np.errstate(divide="ignore"):
        ours = np.asarray(schedule.level(np.asarray(steps.now.t)).log_snr)
    if not np.allclose(ours, log_snr, rtol=1e-3, atol=1e-3):
        raise ValueError("adaptive_ode was made for another schedule than this grid: make both from the same one.")
    if not log_snr[-1] > 0:
        raise ValueError(
            f"adaptive_ode got a grid of {len(log_snr)} steps whose last one, a single denoising, begins at log_snr = "
            f"{log_snr[-1]:.3g}; expected nearly clean data, above 0. Use grid.name=uniform_log_snr or karras with "
            "grid.num_steps=2: one step for the solver and one to clean data."
        )
