"""What a trained run knows of images that it has not seen, in bits per dimension: one exact pass over a data set."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion import build, devices, sampling, workdir
from diffusion import likelihood as library
from diffusion.commands import outputs, plots
from diffusion.commands.console import refusing, say
from diffusion.commands.measures import UNGUIDED, Asked, Protocol, measures, resolved
from diffusion.commands.passes import Found, check, one_pass
from diffusion.config import PLACES_OF_DATA
from diffusion.data.dataset import Dataset
from diffusion.provenance import provenance

SUMMANDS = ("L_T", "sum", "L_0", "prior", "diffusion", "reconstruction")
"""The parts of a bound, in the order of its formula."""


def likelihood(
    folder: str | Path,
    *,
    split: str = "test",
    num_images: int | None = None,
    threshold: str | None = None,
    batch_size: int = 128,
    data: Mapping[str, Any] | None = None,
    checkpoint: int | str | None = None,
    **asked: Any,
) -> Path:
    """Measures what a data set's images cost under the run in the folder, in bits per dimension; the path of the JSON.

    It lies in <folder>/likelihood/, with each image's own numbers (.npz), and for a chain a plot of the bound's terms
    beside it. Its "bits_per_dimension" has a mean and a standard error over the images for "bound/total" and its parts,
    and for "ode/total", and lists over the steps for "bound/L_t" and "bound/mse"; "protocol" says how they were made.

    split, num_images: "test" or "train", and how many of its first images; None is all.
    variance:   of p in a chain's bound: "small", "large" or "learned"; None is what the run samples with.
    threshold:  of x_0 in the bound, "clip", "dynamic" or "none"; None is the run's own. The flow is never clipped.
    num_steps:  of the bound's chain, respaced; None is the training chain.
    num_terms:  how many of its terms are drawn for each image, an estimate instead of the full sum (None); a continuous
                path has infinitely many, of which 32 are drawn where it is None.
    ode_steps:  levels of the flow (`likelihood.flow_grid`), 200; the error of too few is not in the standard error.
    solver, trace, num_probes, dequantise: of the flow, see `likelihood.ode_bpd`: "heun", "hutchinson", 1, "uniform".
    seed:       image i has the same noise for the same seed (0), in any batches, on any devices.
    checkpoint: its step, or "best"; None is the newest.
    data:       another place of the same images: {"data_dir": ...}, {"archive": ...} or {"path": ...}.

    Killed and started again, it goes on behind the last batch that was done, to the same numbers.
    A run that knows classes or captions is measured with those of each image, and without guidance.
    Refused: before anything is measured. TypeError for an option that there is not.
    """
    folder, options = Path(folder).expanduser(), Asked(**asked)
    with refusing():
        other = {} if threshold is None else {"threshold": threshold, "percentile": None}
        run = build.load(folder, checkpoint, sampler=other, guidance=UNGUIDED)
        dataset = _open(run, split, data or {})
        count = len(dataset) if num_images is None else num_images
        if not 1 <= count <= len(dataset) or batch_size < 1:
            raise ValueError(
                f"got num_images={num_images}, batch_size={batch_size}; expected 1..{len(dataset)} images of {split}, "
                "and batches of at least 1."
            )
        how, grid = resolved(run, options)
        parts = measures(run, how, grid)
        check(parts, run.params, dataset, run.conditions.names)
        made = _description(run, how, split, count)
        file = outputs.open_folder(folder / "likelihood") / f"{_name(made, options)}.json"
        there = devices.of_first_process(file.exists() and bool(_read(file)))
    if "ode" not in parts:
        cleanest = library.least_noisy(run.facts.num_values)
        say(f"no flow is measured: the chain has fewer than two levels of log-SNR up to {cleanest:.3g}")
    if there:
        say("measured before:")
    else:
        start, kept = time.perf_counter(), file.with_suffix(".unfinished.npz")
        given: dict[str, Any] = {"reads": run.conditions.names, "seed": how.seed, "batch_size": batch_size}
        found = one_pass(parts, run.params, dataset, count, kept=kept, **given)
        if jax.process_index() == 0:
            times = sampling.strided(run.schedule, how.num_steps).now.t if found.sums else None
            _write(file, made, found, times, time.perf_counter() - start)
            kept.unlink()
    if jax.process_index() == 0:
        for line in _lines(_read(file), file):
            say(line)
    return file


def _open(run: build.Run, split: str, data: Mapping[str, Any]) -> Dataset:
    """The images to measure; ValueError where there are none, or others than the run knows."""
    if wrong := [key for key in data if key not in PLACES_OF_DATA]:
        raise ValueError(f"data.{wrong[0]} cannot change in a trained run; {', '.join(PLACES_OF_DATA)} can.")
    config = run.config.copy_and_resolve_references()
    config.data.update(data)
    try:
        dataset = build.open_dataset(config, split)
    except ValueError as error:
        hint = "" if split == "train" else "\n(--split=train measures the images that the run was trained on.)"
        raise ValueError(f"{error}{hint}") from error
    facts, here = run.facts, (tuple(dataset.shape), dataset.num_values, tuple(dataset.class_names))
    if here != (facts.shape, facts.num_values, facts.class_names):
        raise ValueError(
            f"the {split} images have another shape, number of values or classes than those of the training: {here} "
            f"here, {(facts.shape, facts.num_values, facts.class_names)} there."
        )
    return dataset


def _description(run: build.Run, how: Protocol, split: str, count: int) -> dict[str, Any]:
    """What is measured, and how."""
    return {
        "split": split,
        "num_images": count,
        "num_values": run.facts.num_values,
        "conditions": list(run.conditions.names),
        "protocol": how._asdict(),
        "checkpoint_step": run.step,
        "ema": next(iter(run.ema_decays)),
        **outputs.model(run),
    }


def _name(made: Mapping[str, Any], asked: Asked) -> str:
    """Another name for other numbers: what was asked for in words, the rest as a hash."""
    words = outputs.words({key: value for key, value in asked._asdict().items() if value})
    counts = [made["split"], f"n{made['num_images']}", *words, f"checkpoint{made['checkpoint_step']}"]
    return "_".join([*counts, outputs.digest(made)])


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is damaged ({error}); delete it to measure again.") from error


def _write(file: Path, made: Mapping[str, Any], found: Found, times: Any, seconds: float) -> None:
    """The JSON, last; each image's numbers, and the plot of the bound's terms at their times, beside it."""
    numbers: dict[str, Any] = {}
    for name, values in found.rows.items():
        mean, error = library.mean_and_error(values)
        numbers[name] = {"mean": mean, "standard_error": error if np.isfinite(error) else None}
    numbers |= {name: total.tolist() for name, total in found.means().items()}
    if times is not None:
        numbers["bound/t"] = times.tolist()
        plots.bound_terms(file.with_suffix(".png"), times, found)
    arrays: dict[str, Any] = {name.replace("/", "_"): values for name, values in found.rows.items()}
    np.savez(file.with_suffix(".npz"), **arrays)
    workdir.write(file.parent, file.name, {**made, "bits_per_dimension": numbers, "seconds": seconds, **provenance()})


def _lines(written: Mapping[str, Any], file: Path) -> Iterator[str]:
    """What is said of a measurement."""
    numbers, how = written["bits_per_dimension"], written["protocol"]

    def of(name: str) -> str:
        error = numbers[name]["standard_error"]
        return f"{numbers[name]['mean']:.4f}" + (f" +- {error:.4f}" if error is not None else "") + " bits/dim"

    summands = [name for name in SUMMANDS if f"bound/{name}" in numbers]
    summed = " + ".join(f"{name} {numbers[f'bound/{name}']['mean']:.4g}" for name in summands)
    steps = f"{how['num_steps']} steps, variance {how['variance']}" if how["num_steps"] else "infinitely many steps"
    yield f"bound {of('bound/total')} = {summed} ({steps}, threshold {how['threshold']})"
    if "ode/total" in numbers:
        ways = f"{how['solver']}, {how['trace']} trace, dequantise {how['dequantise']}, no threshold"
        nfe = f"{numbers['ode/nfe']['mean']:.0f} evaluations, whose error is not in +-"
        yield f"ode   {of('ode/total')} ({ways}; {nfe})"
    conditions = f" with their {', '.join(written['conditions'])}" if written["conditions"] else ""
    images = f"{written['num_images']} {written['split']} images{conditions} in {written['seconds']:.1f} s"
    yield f"{images}: {file} and what lies beside it"
