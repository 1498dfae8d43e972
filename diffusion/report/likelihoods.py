"""What --mode=likelihood measured of runs, in bits per dimension: a table for each set of images."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from diffusion.report.folders import Reader, Run
from diffusion.report.words import plus_minus


class Row(NamedTuple):
    """One measurement; ode is empty where the run has no flow that could be followed."""

    run: str
    bound: str
    ode: str
    checkpoint: str
    bound_protocol: str
    ode_protocol: str


class Table(NamedTuple):
    """The measurements of the same images, by run; words: which images."""

    words: str
    rows: Sequence[Row]


def tables(reader: Reader, runs: Sequence[Run]) -> list[Table]:
    """A table for each data set, split and number of images."""
    found: dict[str, list[Row]] = {}
    for run in runs:
        for file in sorted((run.folder / "likelihood").glob("*.json")):
            written = reader.json(file)
            if written is None:
                continue
            try:
                words, row = _images(written), _row(run.name, written)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                reader.note(file, f"no likelihood as --mode=likelihood writes it: {type(error).__name__} {error}")
            else:
                found.setdefault(words, []).append(row)
    return [Table(words, rows) for words, rows in found.items()]


def _images(written: Mapping[str, Any]) -> str:
    data = written.get("config", {}).get("data.name", "the run's data set")
    return f"{written['num_images']:,} {written['split']} images of {data}"


def _row(run: str, written: Mapping[str, Any]) -> Row:
    numbers, how = written["bits_per_dimension"], written["protocol"]
    conditions = f", told the {' and '.join(written['conditions'])}" if written["conditions"] else ""
    return Row(
        run=run,
        bound=plus_minus(numbers["bound/total"]),
        ode=plus_minus(numbers["ode/total"]) if "ode/total" in numbers else "",
        checkpoint=f"{written['checkpoint_step']:,} (EMA {written['ema']})",
        bound_protocol=_bound_words(how) + conditions,
        ode_protocol=_ode_words(how) if "ode/total" in numbers else "",
    )


def _bound_words(how: Mapping[str, Any]) -> str:
    steps = f"{how['num_steps']:,} steps, variance {how['variance']}" if how["num_steps"] else "infinitely many steps"
    terms = f"{how['num_terms']} terms drawn" if how["num_terms"] else "every term"
    return f"{steps}, {terms}, threshold {how['threshold']}, seed {how['seed']}"


def _ode_words(how: Mapping[str, Any]) -> str:
    levels = f", {how['ode_levels']} levels" if how["ode_levels"] else ""
    probes = f" (probes: {how['num_probes']})" if how["num_probes"] else ""
    return f"{how['solver']}{levels}, {how['trace']} trace{probes}, dequantise {how['dequantise']}"
