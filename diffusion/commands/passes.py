"""One exact pass over a data set, on all devices, which a killed process takes up where it was."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion import devices, keys, workdir
from diffusion.commands.console import bar, say
from diffusion.data import pipeline
from diffusion.data.dataset import Dataset
from diffusion.types import Params

Measure = Callable[[Params, Any, Any, Any], tuple[Mapping[str, Any], Mapping[str, Any]]]
"""(params, keys, images, cond) -> (numbers of each image, [batch] or []; of each step and image, [n, batch]).

keys has one for each image. Pure, to be compiled: an image's numbers depend on its own row alone.
"""


class Found(NamedTuple):
    """What is measured: numbers of each image by part/name, [images]; sums over them of each step's numbers, [n]."""

    rows: dict[str, np.ndarray]
    sums: dict[str, np.ndarray]

    def means(self) -> dict[str, np.ndarray]:
        """The mean over the images of each step's numbers, [n]."""
        images = len(next(iter(self.rows.values())))
        return {name: total / images for name, total in self.sums.items()}


def one_pass(
    parts: Mapping[str, Measure],
    params: Params,
    dataset: Dataset,
    num_images: int,
    *,
    reads: tuple[str, ...],
    seed: int,
    batch_size: int,
    kept: Path,
) -> Found:
    """The numbers of the first num_images images, each measured once, float64, whole on the first process.

    reads: the entries of a record that condition the model. kept: a file that holds what is done after each batch; the
    same call goes on from it. An image's keys follow from the seed, its id and the part's name.
    """
    mesh = devices.data_mesh()
    params = devices.put(params, devices.replicated(mesh))

    measure = jax.jit(_together(parts, keys.stream(jax.random.key(seed), "pass")))
    found = _read(kept)
    done = devices.of_first_process(len(next(iter(found.rows.values()), ())))
    say(f"measuring {num_images - done} images; the first batch is compiled before")
    for rows in bar(devices.row_batches(num_images, batch_size, mesh, done), num_images, done):
        batch = pipeline.gather(dataset, rows)
        given = rows, batch["image"], {name: batch[name] for name in reads}
        measured = jax.tree.map(devices.fetch, measure(params, *devices.put(given, devices.split(mesh))))
        found = _joined(found, measured, min(len(rows), num_images - int(rows[0])))
        if jax.process_index() == 0:
            _keep(kept, found)
    return found


def check(parts: Mapping[str, Measure], params: Params, dataset: Dataset, reads: tuple[str, ...]) -> None:
    """Raises what the parts have to say of their options, before anything is computed."""
    row = pipeline.gather(dataset, np.arange(1))
    cond = {name: row[name] for name in reads}
    jax.eval_shape(_together(parts, jax.random.key(0)), params, np.arange(1), row["image"], cond)


def _together(parts: Mapping[str, Measure], key: Any) -> Callable[..., Any]:
    """(params, ids, images, cond) -> what each part measures, by name."""

    def measure(params: Params, ids: Any, images: Any, cond: Any) -> Any:
        each = keys.per_sample(key, ids)
        return {name: part(params, keys.each_stream(each, name), images, cond) for name, part in parts.items()}

    return measure


def _joined(found: Found, measured: Mapping[str, Any], count: int) -> Found:
    """With one batch more, of whose rows the first `count` are new images."""
    rows, sums = dict(found.rows), dict(found.sums)
    for part, (of_image, of_step) in measured.items():
        for name, values in of_image.items():
            new = np.broadcast_to(values, count) if np.ndim(values) == 0 else values[:count]
            rows[f"{part}/{name}"] = np.append(rows.get(f"{part}/{name}", np.zeros(0)), np.asarray(new, np.float64))
        for name, values in of_step.items():
            total = np.asarray(values[:, :count], np.float64).sum(1)
            sums[f"{part}/{name}"] = sums.get(f"{part}/{name}", 0.0) + total
    return Found(rows, sums)


def _read(kept: Path) -> Found:
    """What a pass before has done; nothing where there was none."""
    found = Found({}, {})
    if not kept.exists():
        return found
    try:
        with np.load(kept) as arrays:
            for name in arrays:
                kind, _, place = name.partition(":")
                getattr(found, kind)[place] = arrays[name]
    except workdir.DAMAGED_ARRAYS as error:
        say(f"{kept} is damaged ({error}): every image is measured anew")
        return Found({}, {})
    say(f"going on behind image {len(next(iter(found.rows.values())))}: {kept} was there")
    return found


def _keep(kept: Path, found: Found) -> None:
    """Writes it atomically."""
    arrays = {f"{kind}:{k}": v for kind, values in found._asdict().items() for k, v in values.items()}
    workdir.write_arrays(kept, arrays)
