"""How good a run's samples are: drawn by id, measured against a reference, with all that the numbers depend on."""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from diffusion import build, devices, evaluations, measuring, workdir
from diffusion.commands import draws, outputs
from diffusion.commands.console import refusing, say
from diffusion.commands.draws import Draw
from diffusion.commands.measured import Measured, measured_with
from diffusion.features import Extractor
from diffusion.provenance import provenance
from diffusion.types import Params


class Way(NamedTuple):
    """A way of drawing: settings that replace the run's own, as in `build.load`, a number of steps, a checkpoint."""

    sampler: Mapping[str, Any] = {}
    grid: Mapping[str, Any] = {}
    guidance: Mapping[str, Any] = {}
    num_steps: int | None = None
    checkpoint: int | str | None = None


def evaluate(
    folder: str | Path,
    *,
    reference: str | Path | None = None,
    metrics: Sequence[str | Mapping[str, Any]] = ("frechet",),
    num_samples: int = 10_000,
    ways: Sequence[Way] = (Way(),),
    seed: int = 0,
    batch_size: int = 128,
    labels: Sequence[int] | None = None,
    prompts: Sequence[str] | None = None,
    features: str | Extractor | None = None,
    weights: str | None = None,
) -> list[Path]:
    """Measures the samples of the run in the folder; the path of one JSON for each way and metric.

    They lie in <folder>/evaluations/, a folder for each way with the samples (.npz parts of uint8 [n, h, w, c]), and
    each is a row of <folder>/evaluations.jsonl, the run's table. "values" are the numbers, named with the number of
    samples ("FID@10000"); "protocol" is what must be the same for two numbers to compare, in "protocol_hash" for short.

    reference:  what --mode=ref_stats wrote, or a public .npz of mu and sigma; needed but for the inception score.
    metrics:    as `measuring.choose` takes them: "frechet", "kid:num_subsets=0", {"name": "precision_recall", "k": 5}.
    ways:       of drawing; several share the parameters that are the same.
    seed:       sample i is the same picture for the same seed at any number of samples, in any batches.
    labels, prompts: what is drawn, in turn; None is all classes, and some captions of the training set.
    features, weights: the extractor; by default the one that the reference was made with.

    Killed and started again, it keeps the samples that were drawn. Refused: before anything is drawn.
    """
    folder = Path(folder).expanduser()
    with refusing():
        if num_samples < 2 or batch_size < 1:
            raise ValueError(f"got num_samples={num_samples}, batch_size={batch_size}; expected at least 2 and 1.")
        asked = outputs.asked(labels, prompts)
        loaded: dict[str, Params] = {}
        made = [_drawing(folder, way, asked, seed, num_samples, loaded) for way in ways]
        drawings = list({draw.folder: draw for draw in made}.values())
        how = measured_with(reference, metrics, features, weights)
        how.check(drawings[0].run.shape, num_samples)
        for draw in drawings:
            draw.folder.mkdir(parents=True, exist_ok=True)
        draws.check_space(drawings)
    if how.reference is not None and not how.reference.facts:
        say(
            f"{how.reference.path} does not say what it was made with; taken for pytorch-fid's features. Those of "
            "TensorFlow's own graph, as in ADM's files, differ a little: quote which file it was."
        )
    files = [file for draw in drawings for file in _measured(folder, draw, how, batch_size)]
    if jax.process_index() == 0:
        _report(folder, files)
    return files


def _drawing(
    folder: Path, way: Way, asked: outputs.Asked, seed: int, num_samples: int, loaded: dict[str, Params]
) -> Draw:
    """What is drawn, and where it is kept: another folder for whatever decides other pixels.

    loaded: the parameters that are there already, by their hash, which are shared.
    """
    run = build.load(folder, way.checkpoint, sampler=way.sampler, grid=way.grid, guidance=way.guidance)
    run.cond(num_samples, *asked)
    made = {**outputs.way(run, way.num_steps, seed, asked), **outputs.model(run)}
    run = dataclasses.replace(run, params=loaded.setdefault(made["parameters"], run.params))
    outputs.open_folder(folder / "evaluations")
    place = folder / "evaluations" / f"{outputs.file_name(made)}_{outputs.digest(made)}"
    return Draw(run, way.num_steps, seed, asked, num_samples, place, made)


def _measured(folder: Path, draw: Draw, how: Measured, batch_size: int) -> list[Path]:
    """Draws, gathers and computes what no JSON holds yet; the JSONs of all metrics."""
    protocols = [how.protocol(chosen, draw.num_samples) for chosen in how.metrics]
    files = [draw.folder / _name(protocol) for protocol in protocols]
    todo = [i for i, file in enumerate(files) if not devices.of_first_process(file.exists())]
    if todo:
        drawing = draws.drawn(draw, batch_size)
        start = time.perf_counter()
        needed = measuring.needed([how.metrics[i] for i in todo])
        gathered = measuring.gather(draws.kept(draw), how.extractor, **needed)
        for i in todo:
            chosen, protocol = how.metrics[i], protocols[i]
            found = measuring.numbers(chosen, gathered, how.against(chosen))
            names = {k: measuring.label(k, how.extractor.name, draw.num_samples) for k in found}
            result = {
                "values": {names[k]: value for k, value in found.items()},
                "protocol": protocol,
                "protocol_hash": evaluations.protocol_hash(protocol),
                **draw.made,
                "seconds": {"drawing": drawing.seconds, "measuring": time.perf_counter() - start},
                "drawn_at": drawing.commits,
                **provenance(),
            }
            if jax.process_index() == 0:
                workdir.write(draw.folder, files[i].name, result)
    if jax.process_index() == 0:
        for file in files:
            evaluations.append(folder, _row(folder, file))
    return files


def _name(protocol: Mapping[str, Any]) -> str:
    """frechet@10000_1f3a9c02.json: another name for another protocol."""
    return f"{protocol['metric']['name']}@{protocol['num_samples']}_{evaluations.protocol_hash(protocol)}.json"


def _row(folder: Path, file: Path) -> dict[str, Any]:
    """A JSON without what is long, as a row of the table."""
    content = json.loads(file.read_text())
    short = {k: v for k, v in content.items() if k not in ("config", "versions", "command", "devices", "python")}
    return {**short, "file": str(file.relative_to(folder))}


def _report(folder: Path, files: Sequence[Path]) -> None:
    """The rows of these evaluations, a table for each protocol."""
    rows = {row["file"]: row for row in evaluations.read(folder)}
    for group in evaluations.groups([rows[str(file.relative_to(folder))] for file in files]):
        say(f"\n{evaluations.words(group[0]['protocol'])}\n\n{evaluations.table(group)}")
    say(f"\nsamples and results: {folder / 'evaluations'}; the run's table: {folder / evaluations.FILE}")
