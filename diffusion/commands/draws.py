"""Samples of a run by id, kept on disk part by part: a killed drawing goes on, a larger one begins with a smaller."""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion import build, devices, sampling, workdir
from diffusion.commands import outputs
from diffusion.commands.console import bar, say
from diffusion.data.scaling import to_uint8
from diffusion.provenance import provenance


class Draw(NamedTuple):
    """Which samples: those of ids 0..num_samples - 1 of one seed, drawn in one way.

    made: all that decides their pixels, as results say it; the folder's name holds its hash.
    """

    run: build.Run
    num_steps: int | None
    seed: int
    asked: outputs.Asked
    num_samples: int
    folder: Path
    made: Mapping[str, Any]


def check_space(draws: Sequence[Draw]) -> None:
    """OSError where the disk has no room for the samples that are not there yet."""
    missing = [max(draw.num_samples - sum(part.size for part in _parts(draw.folder)), 0) for draw in draws]
    needed = sum(count * int(np.prod(draw.run.shape)) for draw, count in zip(draws, missing, strict=True))
    free = shutil.disk_usage(draws[0].folder).free
    if free < needed:
        raise OSError(
            f"{sum(missing)} samples take {needed / 1e6:,.2f} MB, and the disk of {draws[0].folder} has "
            f"{free / 1e6:,.2f} MB left. Free some space, or draw fewer: num_samples."
        )


class Drawn(NamedTuple):
    """How samples came to be: the seconds that all of them took, and the commits of the code that drew them."""

    seconds: float
    commits: list[str]


def drawn(draw: Draw, batch_size: int) -> Drawn:
    """Draws what is missing, over all devices, and keeps it batch by batch.

    A part is <first id>.npz with arr_0, uint8 [batch, h, w, c]. Whole batches are drawn, so that each is compiled once.
    """
    mesh = devices.data_mesh()
    parts = _parts(draw.folder)
    done = devices.of_first_process(sum(part.size for part in parts))
    if done:
        say(f"{min(done, draw.num_samples)} of {draw.num_samples} samples are in {draw.folder}")
    seconds, now = sum(part.seconds for part in parts), str(provenance()["commit"])
    commits = sorted({part.commit for part in parts})
    if others := [commit for commit in commits if commit != now]:
        say(f"some were drawn by other code (commit {', '.join(others)}); delete that folder to draw them anew")
    if done >= draw.num_samples:
        return Drawn(seconds, commits)
    batches = devices.row_batches(draw.num_samples, batch_size, mesh, done)
    size = len(batches[0])
    cond = draw.run.cond(done + size * len(batches), *draw.asked)
    for rows in bar(batches, draw.num_samples, done, unit="sample"):
        start, first = time.perf_counter(), int(rows[0])
        mine = {name: values[first : first + size] for name, values in cond.items()}
        images = _generate(draw, mine, first, size)
        took = time.perf_counter() - start
        seconds += took
        if jax.process_index() == 0:
            arrays = {"arr_0": to_uint8(images), "seconds": took, "commit": now}
            workdir.write_arrays(draw.folder / f"{first:08d}.npz", arrays)
    devices.any_process(False)  # the other processes read what the first has written
    return Drawn(seconds, sorted({*commits, now}))


def kept(draw: Draw) -> Iterator[np.ndarray]:
    """The samples, uint8 [n, h, w, c], a part after the other."""
    first = 0
    for part in _parts(draw.folder):
        with np.load(part.file) as content:
            yield content["arr_0"][: draw.num_samples - first]
        first += part.size
        if first >= draw.num_samples:
            return
    raise RuntimeError(
        f"{draw.folder} holds {first} of {draw.num_samples} samples that were drawn: another job has changed it. "
        "Let one job at a time draw in one way; the same command goes on."
    )


def _generate(draw: Draw, cond: Mapping[str, Any], first: int, size: int) -> np.ndarray:
    given: dict[str, Any] = {"num_steps": draw.num_steps, "seed": draw.seed, "cond": cond}
    return sampling.generate(draw.run, num_samples=size, first_id=first, batch_size=size, **given)


class _Part(NamedTuple):
    file: Path
    size: int
    seconds: float
    commit: str


def _parts(folder: Path) -> list[_Part]:
    """The parts that follow on each other from id 0; what is damaged ends them, and is drawn again."""
    found, first = [], 0
    while (file := folder / f"{first:08d}.npz").exists():
        try:
            with np.load(file) as content:
                part = _Part(file, len(content["arr_0"]), float(content["seconds"]), str(content["commit"]))
                found.append(part)
        except workdir.DAMAGED_ARRAYS as error:
            say(f"{file} is damaged ({error}): it is drawn again")
            break
        first += found[-1].size
    return found
