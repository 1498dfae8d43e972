"""Metrics of runs, put into tables: numbers of two protocols never stand in one.

`groups` is the whole of what the page asks of this file.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from diffusion import workdir
from diffusion.config import DEFAULTS
from diffusion.evaluations import latest
from diffusion.report.folders import Reader, Run
from diffusion.report.words import number, short

NEEDED = {"values": dict, "protocol": dict, "protocol_hash": str}
"""What a row must have, and of what type."""


class Row(NamedTuple):
    """One evaluation: whose, how it was drawn (heading -> words), and its numbers in words by name."""

    run: str
    drawn: Mapping[str, str]
    values: Mapping[str, str]


class Group(NamedTuple):
    """The evaluations that may be compared, by run. details: the protocol's every key.

    drawn, values: the headings of the columns that any of the rows has something in.
    """

    words: str
    digest: str
    details: Mapping[str, str]
    drawn: Sequence[str]
    values: Sequence[str]
    rows: Sequence[Row]


def groups(reader: Reader, runs: Sequence[Run]) -> list[Group]:
    """A group for each protocol, the oldest first. Rows are of one only if hash and protocol are the same."""
    found: dict[str, list[tuple[Run, Mapping[str, Any]]]] = {}
    for run in runs:
        for row in latest(_rows(reader, run)):
            same = json.dumps([row["protocol_hash"], row["protocol"]], sort_keys=True)
            found.setdefault(same, []).append((run, row))
    return [_group(members) for members in found.values()]


def _rows(reader: Reader, run: Run) -> Iterator[dict[str, Any]]:
    """The run's evaluations as they were written; a note of each line that is none, but for an unfinished last one."""
    file = run.folder / "evaluations.jsonl"
    try:
        lines = file.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return
    except OSError as error:
        return reader.note(file, error)
    for place, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if line.endswith(b"\n"):
                reader.note(file, f"line {place} is damaged: {error}")
            continue
        if not isinstance(row, dict):
            reader.note(file, f"line {place} is no evaluation: expected an object, got a {type(row).__name__}")
        elif wrong := [key for key, kind in NEEDED.items() if not isinstance(row.get(key), kind)]:
            reader.note(file, f"line {place} is no evaluation: {', '.join(wrong)} missing or of another type")
        else:
            yield row


def _group(members: Sequence[tuple[Run, Mapping[str, Any]]]) -> Group:
    first = members[0][1]
    rows = [Row(run.name, _drawn(row), {k: number(v) for k, v in row["values"].items()}) for run, row in members]
    headings = [name for name in rows[0].drawn if any(row.drawn[name] for row in rows)]
    values = {name: None for row in rows for name in row.values}
    details = {key: number(value) for key, value in workdir.flat(first["protocol"])}
    words = protocol_words(first["protocol"])
    return Group(words, first["protocol_hash"], details, headings, list(values), rows)


def protocol_words(protocol: Mapping[str, Any]) -> str:
    """What the protocol is, its metric first: "frechet (reads pool), 10,000 samples, features inception, ..."."""
    rest = dict(protocol)
    words = [_block(rest.pop("metric", None))]
    if (count := rest.pop("num_samples", None)) is not None:
        words.append(f"{number(count)} samples")
    if features := rest.pop("features", None):
        words.append(f"features {_block(features)}")
    if "reference" in rest:
        reference = rest.pop("reference")
        words.append(f"against the reference of {_block(reference)}" if reference else "no reference")
    words += [f"{key} {_block(value)}" for key, value in rest.items()]
    return ", ".join(filter(None, words))


def _block(value: Any) -> str:
    """{"name": "ddim", "eta": 0.5} as "ddim (eta 0.5)"; any other value in words."""
    if not isinstance(value, dict):
        return "" if value is None else short(number(value))
    options = [f"{key} {short(number(option))}" for key, option in workdir.flat(value) if key != "name"]
    name = str(value.get("name", ""))
    return f"{name} ({', '.join(options)})" if name and options else name or ", ".join(options)


def _drawn(row: Mapping[str, Any]) -> dict[str, str]:
    """Heading -> words, the same headings for every row; what it does not say is empty."""
    guidance, usual = row.get("guidance"), DEFAULTS["guidance"]
    if isinstance(guidance, dict):
        guidance = {key: value for key, value in guidance.items() if value is not None and value != usual.get(key)}
    plain = {"steps": "num_steps", "NFE": "nfe", "seed": "seed", "checkpoint": "checkpoint_step", "EMA": "ema"}
    return {
        "sampler": _block(row.get("sampler")),
        "grid": _block(row.get("grid")),
        "guidance": _block(guidance),
        **{asked: number(row[asked]) if row.get(asked) else "" for asked in ("labels", "prompts")},
        **{heading: number(row[key]) if row.get(key) is not None else "" for heading, key in plain.items()},
    }
