"""Ordinary differential equations of a batch, solved adaptively, each row in steps of its own (diffrax, optional).

A row's solution does not depend on its batch, while the right-hand side (a network) is evaluated once a stage for the
whole batch: `adaptive_ode` samples with it, `likelihood.ode_bpd` integrates a divergence beside the sample.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.paths import Schedule
from diffusion.types import Step, expand

SOLVERS = {"bosh3": ("Bosh3", 3), "dopri5": ("Dopri5", 5), "dopri8": ("Dopri8", 8), "tsit5": ("Tsit5", 5)}
"""Explicit Runge-Kutta methods with an error estimate: their names here, in diffrax, and their orders."""

FIRST_STEP = 0.01
"""The first step's size, unless it is refused; steps grow up to tenfold each. (diffrax 0.7 would take the same.)"""

Field = Callable[[Any, Any], Any]
"""(x [batch, ...], s [batch]) -> dx / ds, the shape of x."""


def root_mean_square(x: Any) -> Any:
    """The root of the mean square of all values."""
    return jnp.sqrt(jnp.mean(x**2))


def adaptive(
    wanted_by: str,
    schedule: Schedule,
    *,
    rtol: float,
    atol: float,
    solver: str,
    max_steps: int,
    norm: Callable[[Any], Any] = root_mean_square,
) -> Callable[..., tuple[Any, Any]]:
    """solve(field, x, start, end, stops) -> (x at s = end, evaluations of the field per row).

    x [batch, ...] at s = start; start < end, equal for all rows; stops, rising, numpy: no step goes across one.
    rtol, atol: a step's error over atol + rtol |x| has a norm of at most 1 in each row.
    Rows that do not arrive in max_steps are NaN, and a line is printed that says how many are. (An exception cannot
    leave a computation that runs on many devices.)

    ValueErrors, in the name of `wanted_by`: a chain, a wrong option, diffrax missing.
    """
    _check_options(wanted_by, schedule, rtol, atol, solver, max_steps)
    diffrax = _diffrax(wanted_by)
    method = getattr(diffrax, SOLVERS[solver][0])()
    pid = diffrax.PIDController(rtol, atol, norm=norm)
    stages = method.tableau.num_stages - 1  # the last stage of a step is the first one of the next

    def solve(field: Field, x: Any, start: Any, end: Any, stops: np.ndarray) -> tuple[Any, Any]:
        derivative = _by_row(field, x, start)
        controller = diffrax.ClipStepSizeController(pid, step_ts=stops)

        def one(row: Any, i: Any) -> Any:
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(derivative),
                method,
                start,
                end,
                FIRST_STEP,
                row,
                args=i,
                stepsize_controller=controller,
                adjoint=diffrax.ForwardMode(),
                max_steps=max_steps,
                throw=False,
            )
            return solution.ys[-1], solution.result == diffrax.RESULTS.successful, solution.stats["num_steps"]

        x, finished, num_steps = jax.vmap(one)(x, jnp.arange(len(x)))
        return _nan_where_unfinished(wanted_by, x, finished), 1 + stages * num_steps

    return solve


def stops_in_log_snr(lowest: float = -20.0) -> np.ndarray:
    """The log-SNRs at which every solution stops, all 2: the estimate of a longer step's error may vanish by chance."""
    return np.arange(lowest, 21.0, 2.0)


def check_levels(wanted_by: str, schedule: Schedule, steps: Step) -> None:
    """ValueError where the grid's levels are not the schedule's."""
    log_snr = np.asarray(steps.now.log_snr)
    with np.errstate(divide="ignore"):
        ours = np.asarray(schedule.level(np.asarray(steps.now.t)).log_snr)
    if not np.allclose(ours, log_snr, rtol=1e-3, atol=1e-3):
        raise ValueError(f"{wanted_by} got another schedule than this grid's: make both from the same one.")


def _by_row(field: Field, x: Any, s: Any) -> Callable[[Any, Any, Any], Any]:
    """(s, x[i], i) -> row i of field(x [batch, ...], s [batch]): under `vmap` over all rows one call of field.

    What field closes over (parameters, labels) becomes arguments, since a batching rule may not close over the values
    of an outer computation.
    """
    n = len(x)
    traced = jax.make_jaxpr(field)(x, jnp.broadcast_to(s, n))

    def whole(x: Any, s: Any, closed_over: Any) -> Any:
        return jax.core.eval_jaxpr(traced.jaxpr, closed_over, x, jnp.broadcast_to(s, n))[0]

    @jax.custom_batching.custom_vmap
    def one(s: Any, row: Any, i: Any, closed_over: Any) -> Any:
        return whole(jnp.broadcast_to(row, (n, *row.shape)), s, closed_over)[i]

    @one.def_vmap
    def all_at_once(size: int, batched: Any, s: Any, rows: Any, i: Any, closed_over: Any) -> tuple[Any, bool]:
        return whole(rows if batched[1] else jnp.broadcast_to(rows, (n, *rows.shape)), s, closed_over), True

    return lambda s, row, i: one(s, row, i, traced.consts)


def _nan_where_unfinished(wanted_by: str, x: Any, finished: Any) -> Any:
    failed = (~finished).sum()
    text = wanted_by + ": {} of {} samples did not arrive in max_steps and are NaN; raise max_steps, rtol or atol."
    jax.lax.cond(failed > 0, lambda: jax.debug.print(text, failed, len(x)), lambda: None)
    return jnp.where(expand(finished, x), x, jnp.nan)


def _diffrax(wanted_by: str) -> Any:
    try:
        import diffrax
    except ImportError as error:
        raise ValueError(f"{wanted_by} needs diffrax: pip install diffrax") from error
    return diffrax


def _check_options(wanted_by: str, schedule: Schedule, rtol: float, atol: float, solver: str, max_steps: int) -> None:
    if schedule.num_steps is not None:
        raise ValueError(
            f"{wanted_by} follows a continuous path, but the schedule is a chain of {schedule.num_steps} steps, which "
            "has no levels in between. Use schedule.name=vp_linear, sub_vp_linear, ve_geometric, edm or flow."
        )
    if not (rtol > 0 and atol > 0 and max_steps >= 1):
        raise ValueError(f"got rtol={rtol}, atol={atol}, max_steps={max_steps}; expected positive numbers.")
    if solver not in SOLVERS:
        raise ValueError(f"got solver={solver!r}, expected one of {', '.join(SOLVERS)}.")
