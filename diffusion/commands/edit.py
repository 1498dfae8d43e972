"""Editing images with a trained run."""

import hashlib
import inspect
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion import build, sampling, workdir
from diffusion.commands import outputs
from diffusion.commands.console import refusing, say
from diffusion.commands.pictures import read_image, read_mask
from diffusion.data.scaling import to_uint8
from diffusion.flags import EDITS

_RESAMPLING = ("num_resamples", "jump_length")
OPTIONS = {
    "inpaint": ("mask", *_RESAMPLING),
    "image_to_image": ("strength",),
    "interpolate": ("strength",),
    "colourise": _RESAMPLING,
    "super_resolve": ("factor", *_RESAMPLING),
    "invert": ("iterations",),
}
"""The edits, which are functions of `sampling`, and their options."""
DETERMINISTIC = {"name": "ddim", "eta": 0.0}
"""The sampler settings of inversion and of interpolated noise, which need a deterministic one."""


class Given(NamedTuple):
    """What an edit works on: images [n, h, w, c], a mask [h, w], True where known, and its other options."""

    images: Any
    mask: Any
    options: dict[str, Any]


class Drawn(NamedTuple):
    """An edit's results [n, k, h, w, c], k for each image; the columns shown before them; and what else it found."""

    results: Any
    shown: tuple[Any, ...] = ()
    arrays: dict[str, Any] = {}  # noqa: RUF012
    found: dict[str, Any] = {}  # noqa: RUF012


def edit(
    folder: str | Path,
    edit: str = "",
    *,
    images: Sequence[str | Path] = (),
    num_samples: int | None = None,
    num_steps: int | None = None,
    seed: int = 0,
    batch_size: int = 128,
    sampler: Mapping[str, Any] | None = None,
    grid: Mapping[str, Any] | None = None,
    guidance: Mapping[str, Any] | None = None,
    labels: Sequence[int] | None = None,
    prompts: Sequence[str] | None = None,
    checkpoint: int | str | None = None,
    **options: Any,
) -> Path:
    """Edits image files with the run in the folder and writes the results to <folder>/edits/; the path of the .npz.

    edit:     inpaint, image_to_image, interpolate (between two images; without any, between the samples 0 and 1 of
              the seed), colourise, super_resolve, or invert (and back again).
    options:  OPTIONS[edit]; those of `sampling.inpaint` and so on, but that mask is a file, white where it is painted.
    num_samples: results of each image, by default 4; 8 pictures of an interpolation. An inversion has one.
    labels, prompts:  the classes and the captions to draw, in turn, over the results of each image.
    The others are those of `commands.sample`.

    The .npz holds `arr_0`, uint8 [n * num_samples, h, w, c], image by image, and for inversions their `x_T`; beside it
    lie a PNG (one row for each image: the image, what the model is given of it, the results) and a JSON that says
    how they were made. Refused: before anything is drawn.
    """
    folder, options = Path(folder).expanduser(), {k: v for k, v in options.items() if v is not None}
    with refusing():
        _check_request(edit, images, num_samples, options)
        options = _defaults(edit, images) | options
        replaced = {"sampler": _sampler(edit, images, sampler), "grid": grid, "guidance": guidance}
        run = build.load(folder, checkpoint, **replaced)
        given = _read(run, edit, images, options)
        count = 1 if edit == "invert" else num_samples or (8 if edit == "interpolate" else 4)
        asked = _asked(run, edit, outputs.asked(labels, prompts))
        cond = _cond(run, edit, len(images), count, asked)
        made = outputs.description(run, count, num_steps, seed, asked)
        made |= {
            "edit": edit,
            "images": [str(file) for file in images],
            "options": {name: str(value) if name == "mask" else value for name, value in options.items()},
        }
        workdir.check_writable(folder / "edits")
        start = time.perf_counter()
        how = {"num_steps": num_steps, "seed": seed, "cond": cond, "batch_size": batch_size}
        drawn = _DRAW[edit](run, given, count, how | {"progress": jax.process_index() == 0})
        results = drawn.results.reshape(-1, *run.shape)
        arrays = {"arr_0": to_uint8(results), **drawn.arrays}
        place = outputs.open_folder(folder / "edits")
    rows = np.concatenate([*(column[:, None] for column in drawn.shown), drawn.results], axis=1)
    file = place / f"{_file_name(made, given)}.npz"
    outputs.save(file, arrays, rows.reshape(-1, *run.shape), made | drawn.found, columns=rows.shape[1])
    seconds, found = time.perf_counter() - start, "".join(f"; {k} {v:.3g}" for k, v in drawn.found.items())
    say(f"{len(results)} images in {seconds:.1f} s: {file} and {file.with_suffix('.png').name} beside it{found}")
    return file


def _check_request(edit: str, images: Sequence[Any], num_samples: int | None, options: Mapping[str, Any]) -> None:
    if edit not in EDITS:
        raise ValueError(f"got --edit={edit}, expected one of {', '.join(EDITS)}.")
    for name in options:
        if name not in OPTIONS[edit]:
            takes = ", ".join(f"--{option}" for option in OPTIONS[edit])
            raise ValueError(f"--{name} is not an option of --edit={edit}, which takes {takes}.")
    if edit == "interpolate":
        if len(images) not in (0, 2):
            raise ValueError(f"got {len(images)} images to interpolate between, expected two, or none for two samples.")
        if not images and options:
            raise ValueError("--strength is for two images: without any, the noise of two samples is interpolated.")
        if num_samples == 1:
            raise ValueError("got --num_samples=1, expected at least 2: both ends of the interpolation.")
    elif not images:
        raise ValueError(f"--edit={edit} needs an image: --image=FILE, which may be given more than once.")
    if edit == "inpaint" and "mask" not in options:
        raise ValueError("--edit=inpaint needs --mask=FILE, white where the image is to be painted anew.")
    if edit == "invert" and num_samples is not None:
        raise ValueError("--num_samples is not for --edit=invert: an image has one inversion.")


def _defaults(edit: str, images: Sequence[Any]) -> dict[str, Any]:
    """What the function of `sampling` takes for its options where they are not given."""
    signature = inspect.signature(getattr(sampling, edit)).parameters
    values = {name: signature[name].default for name in OPTIONS[edit] if name != "mask"}
    return values if images else {}


def _sampler(edit: str, images: Sequence[Any], asked: Mapping[str, Any] | None) -> dict[str, Any]:
    """The sampler's settings; ValueError where inversion is asked of another one than its own."""
    settings = dict(asked or {})
    if "name" not in settings and (edit == "invert" or (edit == "interpolate" and not images)):
        settings = DETERMINISTIC | settings
    if edit == "invert" and (settings["name"] != "ddim" or settings.get("eta")):
        raise ValueError("inversion undoes the steps of deterministic DDIM: leave --sampler and sampler.eta out.")
    if edit == "invert":
        settings |= DETERMINISTIC  # whatever eta the run's own sampler has
    return settings


def _read(run: build.Run, edit: str, files: Sequence[str | Path], options: Mapping[str, Any]) -> Given:
    """The images in the run's size and channels, and the mask."""
    if len(run.shape) != 3:
        raise ValueError(f"only images can be edited, but a sample of this run has the shape {run.shape}.")
    h, w, channels = run.shape
    sizes = {(h, w): "what the run draws"}
    if edit == "colourise" and channels != 3:
        raise ValueError("colourising needs a run that draws colour images, but this one draws grey ones.")
    if edit == "super_resolve":
        factor = options["factor"]
        if factor < 2 or h % factor or w % factor:
            raise ValueError(f"got --factor={factor}, expected 2 or more that divides {w} and {h}, the run's size.")
        sizes[h // factor, w // factor] = f"that over --factor={factor}"
    images = [read_image(file, sizes, channels) for file in files]
    if len({image.shape for image in images}) > 1:
        raise ValueError(f"the images have several sizes, {sorted({i.shape[:2] for i in images})}; expected one.")
    mask = read_mask(options["mask"], (h, w)) if "mask" in options else None
    rest = {k: v for k, v in options.items() if k != "mask"}
    return Given(np.stack(images) if images else None, mask, rest)


def _asked(run: build.Run, edit: str, asked: outputs.Asked) -> outputs.Asked:
    """What the results are to be; for interpolations and inversions, which are not by turns, "nothing" by default."""
    if edit not in ("interpolate", "invert"):
        return asked
    if edit == "invert" and run.config.guidance.plus_plus:
        raise ValueError("CFG++ cannot be inverted, as its x_0 and eps are of two estimates: guidance.plus_plus=False.")
    found: dict[str, Any] = asked._asdict()
    nothing = {"label": ("labels", [len(run.conditions.class_names)]), "text": ("prompts", [""])}
    for name in run.conditions.names:
        field, null = nothing[name]
        if found[field] is None and name not in run.conditions.null:
            raise ValueError(f"--edit={edit} of this run needs what the image shows: --{field.removesuffix('s')}=...")
        found[field] = null if found[field] is None else found[field]
        if edit == "interpolate" and len(found[field]) > 1:
            raise ValueError(f"got {len(found[field])} {field} to interpolate under, expected one for all pictures.")
    return outputs.Asked(**found)


def _cond(run: build.Run, edit: str, num_images: int, count: int, asked: outputs.Asked) -> dict[str, Any]:
    """Labels for the rows that are drawn: in turn over each image's results; an interpolation has one."""
    if edit == "interpolate":
        return {name: np.repeat(rows, count, axis=0) for name, rows in run.cond(1, *asked).items()}
    if edit == "invert":
        return run.cond(num_images, *asked)
    return {name: np.concatenate([rows] * num_images) for name, rows in run.cond(count, *asked).items()}


def _inpaint(run: build.Run, given: Given, count: int, how: dict[str, Any]) -> Drawn:
    drawn = sampling.inpaint(run, given.images.repeat(count, 0), given.mask, **given.options, **how)
    return Drawn(_by_image(drawn, count), (given.images, np.where(given.mask[..., None], given.images, np.float32(0))))


def _image_to_image(run: build.Run, given: Given, count: int, how: dict[str, Any]) -> Drawn:
    drawn = sampling.image_to_image(run, given.images.repeat(count, 0), **given.options, **how)
    return Drawn(_by_image(drawn, count), (given.images,))


def _interpolate(run: build.Run, given: Given, count: int, how: dict[str, Any]) -> Drawn:
    if given.images is None:
        return Drawn(sampling.interpolate_noise(run, num_samples=count, sampler=run.sampler, **how)[None])
    first, second = given.images
    drawn = sampling.interpolate(run, first, second, num_samples=count, **given.options, **how)
    return Drawn(drawn[None], (given.images[:1], given.images[1:]))


def _colourise(run: build.Run, given: Given, count: int, how: dict[str, Any]) -> Drawn:
    grey = given.images.mean(-1, keepdims=True)
    drawn = sampling.colourise(run, grey.repeat(count, 0), **given.options, **how)
    return Drawn(_by_image(drawn, count), (given.images, grey.repeat(3, -1)))


def _super_resolve(run: build.Run, given: Given, count: int, how: dict[str, Any]) -> Drawn:
    factor, (h, w, c) = given.options["factor"], run.shape
    low, whole = given.images, given.images.shape[1:] == run.shape
    if whole:
        low = low.reshape(-1, h // factor, factor, w // factor, factor, c).mean((2, 4))
    drawn = sampling.super_resolve(run, low.repeat(count, 0), **given.options, **how)
    blocks = low.repeat(factor, 1).repeat(factor, 2)
    return Drawn(_by_image(drawn, count), (given.images, blocks) if whole else (blocks,))


def _invert(run: build.Run, given: Given, count: int, how: dict[str, Any]) -> Drawn:
    x_T = sampling.invert(run, given.images, **given.options, **how)
    back = sampling.generate(run, x_T=x_T, sampler=sampling.ddim(), **how)
    error = float(np.sqrt(np.mean((back - given.images) ** 2, dtype=np.float64)))
    standard = x_T / np.maximum(np.abs(x_T).max((1, 2, 3), keepdims=True), 1e-6)
    return Drawn(back[:, None], (given.images, standard), {"x_T": x_T}, {"round_trip_rmse": error})


_DRAW = {
    "inpaint": _inpaint,
    "image_to_image": _image_to_image,
    "interpolate": _interpolate,
    "colourise": _colourise,
    "super_resolve": _super_resolve,
    "invert": _invert,
}


def _by_image(rows: Any, count: int) -> Any:
    return rows.reshape(-1, count, *rows.shape[1:])


def _file_name(made: Mapping[str, Any], given: Given) -> str:
    """Another name for other results: inpaint_3f09ab12_num_resamples10_ancestral_..., with a hash of the input."""
    pixels = [np.ascontiguousarray(a).tobytes() for a in (given.images, given.mask) if a is not None]
    digest = [hashlib.sha256(b"".join(pixels)).hexdigest()[:8]] if pixels else []
    return "_".join([made["edit"], *digest, *outputs.words(given.options), outputs.file_name(made)])
