"""What `--mode=likelihood` measures of each image: the variational bound, and the likelihood of the flow."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from diffusion import build, sampling
from diffusion import likelihood as library
from diffusion.commands.passes import Measure
from diffusion.ode import SOLVERS
from diffusion.types import Params, Step

UNGUIDED = {"scale": 1.0, "plus_plus": False, "guide": "", "guide_scale": 1.0}
"""The model itself: what guidance makes of it has no likelihood."""


class Protocol(NamedTuple):
    """How it is measured: with the run and the images, everything that decides the numbers, nothing left to a default.

    variance, threshold: of the bound; variance is None on a continuous path. num_steps: None there. num_terms: None for
    all. The flow is never clipped; num_probes is None for the exact trace, ode_levels for an adaptive solver.
    """

    variance: str | None
    threshold: str
    num_steps: int | None
    num_terms: int | None
    ode_levels: int | None
    ode_log_snr: tuple[float, float]
    solver: str
    trace: str
    num_probes: int | None
    dequantise: str
    seed: int


class Asked(NamedTuple):
    """What the user asked for; None is a default, which `resolved` puts in."""

    variance: str | None = None
    num_steps: int | None = None
    num_terms: int | None = None
    ode_steps: int | None = None
    solver: str | None = None
    trace: str | None = None
    num_probes: int | None = None
    dequantise: str | None = None
    seed: int = 0


def resolved(run: build.Run, asked: Asked) -> tuple[Protocol, Step]:
    """(the protocol, the flow's grid); ValueError for what does not fit the run, or goes without effect."""
    chain, num_values = run.schedule.num_steps, run.facts.num_values
    solver, trace = asked.solver or "heun", asked.trace or "hutchinson"
    if chain is None and (asked.num_steps is not None or asked.variance is not None):
        raise ValueError(
            f"got num_steps={asked.num_steps}, variance={asked.variance}, but the path is continuous: its bound is "
            "that of infinitely many steps, whose variance is no choice. num_terms says how many are drawn."
        )
    if asked.dequantise is not None and not num_values:
        raise ValueError(f"got dequantise={asked.dequantise}, but the data is continuous; leave it out.")
    if asked.num_probes is not None and trace == "exact":
        raise ValueError(f"got num_probes={asked.num_probes} with trace=exact, which draws none; leave it out.")
    if asked.ode_steps is not None and solver in SOLVERS:
        raise ValueError(f"got ode_steps={asked.ode_steps}, but solver={solver} chooses its own; leave it out.")
    if asked.ode_steps is not None and asked.ode_steps < 2:
        raise ValueError(f"got ode_steps={asked.ode_steps}, expected at least 2, such as 200.")
    grid = library.flow_grid(run.schedule, num_values, 200 if asked.ode_steps is None else asked.ode_steps)
    learned = "learned" if run.config.parameterization.variance else "large"
    variance = asked.variance or run.config.sampler.get("variance") or learned
    if variance == "learned" and learned != "learned":
        raise ValueError("got variance=learned, but the model learns none; expected small or large.")
    how = Protocol(
        variance=None if chain is None else variance,
        threshold=run.config.sampler.threshold,
        num_steps=chain if asked.num_steps is None else asked.num_steps,
        num_terms=32 if chain is None and asked.num_terms is None else asked.num_terms,
        ode_levels=None if solver in SOLVERS else len(grid.h),
        ode_log_snr=(float(grid.now.log_snr.min(initial=0)), float(grid.now.log_snr.max(initial=0))),
        solver=solver,
        trace=trace,
        num_probes=None if trace == "exact" else asked.num_probes or 1,
        dequantise=(asked.dequantise or "uniform") if num_values else "none",
        seed=asked.seed,
    )
    return how, grid


def measures(run: build.Run, how: Protocol, grid: Step) -> Mapping[str, Measure]:
    """ "bound", and "ode" where the flow has two levels at least."""
    parts = {"bound": _path_bound(run, how) if run.schedule.num_steps is None else _chain_bound(run, how)}
    return parts if len(grid.h) < 2 else parts | {"ode": _flow(unclipped(run), how, grid)}


def unclipped(run: build.Run) -> build.Run:
    """The run with the same parameters and no threshold on x_0."""
    config = run.config.copy_and_resolve_references()
    config.sampler.threshold, config.sampler.percentile = "none", None
    return build.rebuilt(run, config)


def _chain_bound(run: build.Run, how: Protocol) -> Measure:
    steps = sampling.strided(run.schedule, how.num_steps)
    options: dict[str, Any] = {"num_values": run.facts.num_values, "variance": how.variance}

    def full(params: Params, keys: Any, images: Any, cond: Any) -> Any:
        found = library.vlb_bpd(run.denoiser(params, cond), images, steps, keys, **options)
        parts = {"total": found.total, "L_T": found.L_T, "sum": found.L_t.sum(0), "L_0": found.L_0}
        return parts, {"L_t": found.L_t, "mse": found.mse}

    def estimate(params: Params, keys: Any, images: Any, cond: Any) -> Any:
        denoise = run.denoiser(params, cond)
        found = library.vlb_bpd_estimate(denoise, images, steps, keys, num_terms=how.num_terms or 1, **options)
        return found._asdict(), {}

    return full if how.num_terms is None else estimate


def _path_bound(run: build.Run, how: Protocol) -> Measure:
    options: dict[str, Any] = {"num_values": run.facts.num_values, "num_terms": how.num_terms}

    def continuous(params: Params, keys: Any, images: Any, cond: Any) -> Any:
        found = library.continuous_vlb_bpd(run.denoiser(params, cond), images, run.schedule, keys, **options)
        return found._asdict(), {}

    return continuous


def _flow(run: build.Run, how: Protocol, grid: Step) -> Measure:
    options: dict[str, Any] = {
        "num_values": run.facts.num_values,
        "dequantise": how.dequantise,
        "trace": how.trace,
        "num_probes": how.num_probes or 1,
        "solver": how.solver,
        "schedule": run.schedule,
    }

    def flow(params: Params, keys: Any, images: Any, cond: Any) -> Any:
        found = library.ode_bpd(run.denoiser(params, cond), images, grid, keys, **options)
        return {"total": found.bpd, "nfe": found.nfe}, {}

    return flow
