"""What a trained run knows of images that it has not seen, in bits per dimension: one exact pass over a data set."""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion import build, sampling, workdir
from diffusion import likelihood as bits
from diffusion.commands import outputs, plots
from diffusion.commands.console import Refused, say
from diffusion.commands.passes import Found, Measure, check, one_pass
from diffusion.config import to_json
from diffusion.data.dataset import Dataset
from diffusion.provenance import provenance
from diffusion.schedules import Schedule
from diffusion.types import Params, Step

NOISIEST = -12.0
"""The exact likelihood ends here where a path goes on: next to the prior's, what is left of the data is 6e-6."""

UNGUIDED = {"scale": 1.0, "plus_plus": False, "guide": "", "guide_scale": 1.0}
"""The model itself: what guidance makes of it has no likelihood."""


class Protocol(NamedTuple):
    """What is measured, and how: everything that decides the numbers, but for the run."""

    split: str
    num_images: int
    num_steps: int | None
    num_terms: int | None
    ode_steps: int
    solver: str
    trace: str
    num_probes: int
    dequantise: str
    seed: int


def likelihood(
    folder: str | Path,
    *,
    split: str = "test",
    num_images: int | None = None,
    num_steps: int | None = None,
    num_terms: int | None = None,
    ode_steps: int | None = None,
    solver: str = "heun",
    trace: str = "hutchinson",
    num_probes: int = 1,
    dequantise: str = "uniform",
    seed: int = 0,
    batch_size: int = 128,
    sampler: Mapping[str, Any] | None = None,
) -> Path:
    """Measures the bound and the exact likelihood of a data set's images under the run in the folder.

    The path of the JSON, in <folder>/likelihood/; each image's own numbers, and for a chain a plot of L_t, lie beside
    it.

    split, num_images: "test" or "train", and how many of its first images; None is all.
    num_steps:  of the bound's chain, respaced; None is the training chain.
    num_terms:  how many of its terms are drawn for each image, an estimate instead of the full sum (None); a continuous
                path has infinitely many, of which 32 are drawn where it is None.
    ode_steps:  levels of the exact likelihood's ODE, evenly spread in log-SNR; None is 100, or all of a shorter chain.
    solver, trace, num_probes, dequantise: of the exact likelihood, see `likelihood.ode_bpd`.
    seed:       image i has the same noise for the same seed, in any batches, on any devices.
    sampler:    settings that replace the run's own: {"variance": "small"} is another p for the bound, {"threshold":
                "none"} leaves x_0 unclipped in it. The exact likelihood is always that of the unclipped model.

    Killed and started again, it goes on behind the last batch that was done, to the same numbers.
    A run that knows classes or captions is measured with those of each image, and without guidance.
    Refused: before anything is measured.
    """
    folder = Path(folder).expanduser()
    try:
        run = build.load(folder, sampler=sampler, guidance=UNGUIDED)
        free = build.load(folder, sampler={"threshold": "none", "percentile": None}, guidance=UNGUIDED)
        dataset = _open(run, split)
        count = len(dataset) if num_images is None else num_images
        if not 1 <= count <= len(dataset) or batch_size < 1:
            raise ValueError(
                f"got num_images={num_images}, batch_size={batch_size}; expected 1..{len(dataset)} images of {split}, "
                "and batches of at least 1."
            )
        ode_steps = ode_steps or min(100, run.schedule.num_steps or 100)
        how = Protocol(split, count, num_steps, num_terms, ode_steps, solver, trace, num_probes, dequantise, seed)
        parts = {"bound": _bound(run, how), "exact": _exact(free, how)}
        check(parts, run.params, dataset, run.conditions.names)
        made = _description(run, how)
        place = outputs.open_folder(folder / "likelihood")
    except (ValueError, OSError) as error:
        raise Refused(str(error)) from error
    name = f"{split}_n{count}_seed{seed}_checkpoint{run.step}_{_hash(made)}"
    file = place / f"{name}.json"
    if file.exists():
        say(f"measured before: {file}")
    else:
        start = time.perf_counter()
        kept = place / f"{name}.unfinished.npz"
        found = one_pass(
            parts, run.params, dataset, count, reads=run.conditions.names, seed=seed, batch_size=batch_size, kept=kept
        )
        if jax.process_index() == 0:
            times = sampling.strided(run.schedule, num_steps).now.t if found.sums else None
            _write(file, made, found, times, time.perf_counter() - start)
            kept.unlink()
    for line in _lines(workdir.read(place, file.name)) if jax.process_index() == 0 else ():
        say(line)
    return file


def _open(run: build.Run, split: str) -> Dataset:
    """The images to measure; ValueError where the run knows others."""
    dataset = build.open_dataset(run.config, split)
    facts, here = run.facts, (tuple(dataset.shape), dataset.num_values, tuple(dataset.class_names))
    if here != (facts.shape, facts.num_values, facts.class_names):
        raise ValueError(
            f"the {split} images have another shape, number of values or classes than those of the training: {here} "
            f"here, {(facts.shape, facts.num_values, facts.class_names)} there."
        )
    return dataset


def _bound(run: build.Run, how: Protocol) -> Measure:
    """The variational bound: of every step, of some of them, or of infinitely many."""
    schedule, num_values = run.schedule, run.facts.num_values
    if schedule.num_steps is None:
        if how.num_steps is not None:
            raise ValueError(
                f"got num_steps={how.num_steps}, but the path is continuous and its bound has infinitely many: "
                "num_terms says how many are drawn for each image."
            )
        draws = how.num_terms or 32

        def continuous(params: Params, each: Any, images: Any, cond: Any) -> Any:
            denoise = run.denoiser(params, cond)
            found = bits.continuous_vlb_bpd(denoise, images, schedule, each, num_values=num_values, num_terms=draws)
            return found._asdict(), {}

        return continuous
    steps = sampling.strided(schedule, how.num_steps)
    options: dict[str, Any] = {"num_values": num_values, "variance": run.config.sampler.get("variance")}

    def chain(params: Params, each: Any, images: Any, cond: Any) -> Any:
        denoise = run.denoiser(params, cond)
        if how.num_terms is not None:
            estimate = bits.vlb_bpd_estimate(denoise, images, steps, each, num_terms=how.num_terms, **options)
            return estimate._asdict(), {}
        found = bits.vlb_bpd(denoise, images, steps, each, **options)
        return {"total": found.total, "L_T": found.L_T, "L_0": found.L_0}, {"L_t": found.L_t, "mse": found.mse}

    return chain


def _exact(run: build.Run, how: Protocol) -> Measure:
    """The exact likelihood of the probability flow."""
    options: dict[str, Any] = {
        "num_values": run.facts.num_values,
        "dequantise": how.dequantise if run.facts.num_values else "none",
        "trace": how.trace,
        "num_probes": how.num_probes,
        "solver": how.solver,
        "schedule": run.schedule if run.schedule.num_steps is None else None,
    }
    steps = _ode_grid(run.schedule, run.facts.num_values, how.ode_steps)

    def exact(params: Params, each: Any, images: Any, cond: Any) -> Any:
        found = bits.ode_bpd(run.denoiser(params, cond), images, steps, each, **options)
        return {"total": found.bpd, "nfe": found.nfe}, {}

    return exact


def _ode_grid(schedule: Schedule, num_values: int, num_steps: int) -> Step:
    """Even in log-SNR, from the noisiest level to the one where the data's values stand apart."""
    if schedule.num_steps is None:
        high, low = bits.log_snr_ends(schedule, num_values)
        high -= 1e-4  # a least noise is a limit that no time reaches
    else:
        high, low = (float(schedule.level(t).log_snr) for t in (1, schedule.num_steps))
        high = min(high, bits.least_noisy(num_values))
    return sampling.uniform_log_snr(schedule, num_steps, max(low, NOISIEST), high)


def _description(run: build.Run, how: Protocol) -> dict[str, Any]:
    """What is measured, and how."""
    blocks = to_json(run.config)
    return {
        "data": blocks["data"],
        "schedule": blocks["schedule"],
        "sampler": {k: v for k, v in blocks["sampler"].items() if k in ("variance", "threshold", "percentile")},
        "protocol": how._asdict(),
        "num_values": run.facts.num_values,
        "conditions": list(run.conditions.names),
        "checkpoint_step": run.step,
        "ema": next(iter(run.ema_decays)),
    }


def _hash(made: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:8]


def _write(file: Path, made: Mapping[str, Any], found: Found, times: Any, seconds: float) -> None:
    """The JSON, last; each image's numbers, and the plot of the bound's terms at their times, beside it."""
    numbers: dict[str, Any] = {name: total.tolist() for name, total in found.means().items()}
    if times is not None:
        numbers["bound/t"] = times.tolist()
        plots.bound_terms(file.with_suffix(".png"), times, found)
    for name, values in found.rows.items():
        mean, error = bits.mean_and_error(values)
        numbers[name] = {"mean": mean, "standard_error": error}
    arrays: dict[str, Any] = {name.replace("/", "_"): values for name, values in found.rows.items()}
    np.savez(file.with_suffix(".npz"), **arrays)
    workdir.write(file.parent, file.name, {**made, "bits_per_dimension": numbers, "seconds": seconds, **provenance()})


def _lines(written: Mapping[str, Any]) -> Iterator[str]:
    """What is said of a measurement."""
    numbers = written["bits_per_dimension"]

    def of(name: str) -> str:
        return f"{numbers[name]['mean']:.4f} +- {numbers[name]['standard_error']:.4f}"

    kept = ", ".join(
        f"{name.split('/')[1]} {number['mean']:.4g}"
        for name, number in numbers.items()
        if name.startswith("bound/") and name != "bound/total" and isinstance(number, dict)
    )
    yield f"bound {of('bound/total')} bits/dim ({kept})"
    yield f"exact {of('exact/total')} bits/dim, {numbers['exact/nfe']['mean']:.0f} evaluations an image"
