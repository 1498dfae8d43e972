"""A run's table of evaluations: rows of numbers, each with the protocol that it was measured by.

    rows = evaluations.read("runs/digits")
    print(evaluations.table(rows))              # ValueError where the rows have several protocols
    for group in evaluations.groups(rows): ...  # rows of one protocol each

Two numbers may be compared where everything but the model and the way of drawing is the same: the metric with its
options, the number of samples, the features, the reference. That is the protocol, and its hash stands in each row.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

FILE = "evaluations.jsonl"
Row = Mapping[str, Any]
"""{"values": {"FID@10000": 3.17}, "protocol": {...}, "protocol_hash": "1f3a9c02", "file": ..., and how it was drawn}"""


def protocol_hash(protocol: Mapping[str, Any]) -> str:
    """Eight letters that two protocols share where they are the same."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:8]


def read(folder: str | Path) -> list[dict[str, Any]]:
    """The rows of the run in the folder, oldest first; none where nothing was evaluated."""
    file = Path(folder).expanduser() / FILE
    if not file.exists():
        return []
    rows = []
    for line in file.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # the process died in the middle of this line; the same command adds it again
            continue
    return latest(rows)


def latest(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without those that were measured again: of each evaluation's file the last one counts."""
    return list({row.get("file", place): row for place, row in enumerate(rows)}.values())


def append(folder: Path, row: Row) -> None:
    """Adds a row to the run's table, unless it is there; it takes the place of another one of the same file."""
    if row in read(folder):
        return
    with open(folder / FILE, "a+b") as file:  # appended, never rewritten: several jobs may evaluate one run at once
        file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
        cut = b"" if file.read() in (b"", b"\n") else b"\n"
        file.write(cut + json.dumps(dict(row)).encode() + b"\n")


def groups(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows, those of one protocol together, in the order in which the protocols came."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["protocol_hash"], []).append(row)
    return list(found.values())


def table(rows: Sequence[Row], names: Sequence[str] | None = None) -> str:
    """The rows as a Markdown table: how they were drawn, and their numbers.

    names: one for each row, such as that of its run. ValueError for rows of several protocols, which says where they
    differ: their numbers do not compare. Split them by `groups`.
    """
    if len(found := groups(rows)) > 1:
        raise ValueError(
            "these rows were measured by different protocols, so their numbers do not compare:\n"
            + "\n".join(f"  {key}: {one} and {other}" for key, one, other in _differences(found[0][0], found[1][0]))
            + "\nPrint one table for each protocol, as evaluations.groups(rows) cuts them."
        )
    numbers = list(rows[0]["values"])
    head = [*(["run"] if names else []), "drawn by", *numbers]
    lines = [head, ["---"] * len(head)]
    for i, row in enumerate(rows):
        values = [f"{row['values'][name]:.4g}" for name in numbers]
        lines.append([*([names[i]] if names else []), way(row), *values])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def words(protocol: Mapping[str, Any]) -> str:
    """A protocol in a line: what its numbers were measured with, and against what."""
    options = {key: value for key, value in protocol["metric"].items() if key != "name"}
    metric = protocol["metric"]["name"] + (f" ({_listed(options)})" if options else "")
    reference = protocol["reference"]
    against = "no reference" if reference is None else f"against {_reference(reference)}"
    return f"{metric} of {protocol['num_samples']} samples, features {protocol['features']['name']}, {against}"


def way(row: Row) -> str:
    """How a row's samples were drawn, in a few words."""
    default = {"scale": 1.0, "rescale": 0.0, "plus_plus": False, "guide_scale": 1.0}
    sampler = {k: v for k, v in row["sampler"].items() if k != "name" and (k, v) != ("threshold", "clip")}
    grid = {k: v for k, v in row["grid"].items() if k not in ("name", "num_steps")}
    guidance = {k: v for k, v in row["guidance"].items() if v not in (None, "") and v != default.get(k)}
    parts = [
        row["sampler"]["name"] + (f" ({_listed(sampler)})" if sampler else ""),
        f"{row['num_steps']} steps, {row['grid']['name']}" + (f" ({_listed(grid)})" if grid else ""),
        "NFE chosen while it runs" if row["nfe"] is None else f"NFE {row['nfe']}",
        *([f"guidance {_listed(guidance)}"] if guidance else []),
        *[f"{name} {row[name]}" for name in ("labels", "prompts") if row.get(name)],
        f"seed {row['seed']}",
        f"EMA {row['ema']}",
        f"step {row['checkpoint_step']}",
    ]
    return ", ".join(parts)


def _listed(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items())


def _reference(reference: Mapping[str, Any]) -> str:
    made = (
        f"{reference['data']['name']} {reference['split']} ({reference['num_images']} images), "
        if "data" in reference
        else ""
    )
    return f"{made}reference {reference['sha256'][:8]}"


def _differences(one: Row, other: Row) -> Iterator[tuple[str, Any, Any]]:
    """(key, value here, value there) wherever two protocols differ."""
    flat = [dict(_flat(row["protocol"])) for row in (one, other)]
    for key in sorted(flat[0].keys() | flat[1].keys()):
        values = [leaves.get(key, "nothing") for leaves in flat]
        if values[0] != values[1]:
            yield key, *values


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, tree
