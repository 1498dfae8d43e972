"""What commands write into a run's folder: arrays, a picture, and how both were made."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion import build, images, workdir
from diffusion.config import DEFAULTS, to_json
from diffusion.provenance import fingerprint, provenance

NUMBERS = ("scale", "rescale", "guide_scale")
"""Options of guidance that are numbers, written as floats however they were given."""


def open_folder(folder: Path) -> Path:
    """The folder, made if it is not there; ValueError or OSError where it cannot be written to."""
    workdir.check_writable(folder)
    folder.mkdir(exist_ok=True)
    return folder


class Asked(NamedTuple):
    """What samples are asked to be: labels and prompts, None for what is not asked."""

    labels: list[int] | None
    prompts: list[str] | None


def asked(labels: Sequence[int] | None, prompts: Sequence[str] | None) -> Asked:
    """Both as plain lists; an empty one asks nothing."""
    some_labels = None if labels is None or not len(labels) else np.asarray(labels).tolist()
    return Asked(some_labels, list(prompts) if prompts else None)


def description(run: build.Run, num_samples: int, num_steps: int | None, seed: int, what: Asked) -> dict[str, Any]:
    """Which samples are made, and how."""
    return {**way(run, num_steps, seed, what), "num_samples": num_samples}


def way(run: build.Run, num_steps: int | None, seed: int, what: Asked) -> dict[str, Any]:
    """How samples are made: with the parameters, everything that decides the pixels of sample i."""
    blocks = to_json(run.config)
    count = len(run.grid(num_steps).h)
    return {
        "sampler": blocks["sampler"],
        "grid": blocks["grid"],
        "guidance": {k: float(v) if k in NUMBERS else v for k, v in blocks["guidance"].items()},
        **what._asdict(),
        "num_steps": count,
        "nfe": None if run.sampler.nfe is None else run.sampler.nfe(count),
        "seed": seed,
        "checkpoint_step": run.step,
        "guide_step": None if run.guide is None else run.guide.step,
        "ema": next(iter(run.ema_decays)),
    }


def model(run: build.Run) -> dict[str, Any]:
    """What a result is of: the parameters by their hash, and the config but for what changes no update."""
    settings = {k: v for k, v in workdir.flat(to_json(run.config)) if not k.startswith(workdir.MAY_CHANGE)}
    return {"parameters": fingerprint(run.params), "config": {k: v for k, v in settings.items() if k != "data.path"}}


def digest(made: Mapping[str, Any]) -> str:
    """Eight letters for the name of what was made in this way, which another way does not share."""
    return hashlib.sha256(json.dumps(made, sort_keys=True, default=str).encode()).hexdigest()[:8]


def file_name(made: Mapping[str, Any]) -> str:
    """Another name for other samples: ddim_eta0.5_scale2.0_label3_50steps_n64_seed0_checkpoint2000."""
    plain = {"name", "num_steps", "times"}
    options = {k: v for block in ("sampler", "grid") for k, v in made[block].items() if k not in plain}
    grid, times = made["grid"]["name"], made["grid"].get("times")
    options |= {} if grid in ("strided", "all_steps") else {"grid": grid}
    options |= {"times": _hash(times)} if times else {}
    guidance = {k: v for k, v in made["guidance"].items() if v != DEFAULTS["guidance"][k]}
    if "guide" in guidance:
        path = Path(guidance["guide"]).expanduser().resolve()
        guidance["guide"] = f"{path.name}{made['guide_step']}-{_hash(path)}"
    few = len(made["labels"] or ()) <= 10
    labels = {"label": made["labels"] if few else f"labels{_hash(made['labels'])}"} if made["labels"] else {}
    labels |= {"prompt": _slug(made["prompts"])} if made["prompts"] else {}
    count = [f"n{made['num_samples']}"] if "num_samples" in made else []
    counts = [f"{made['num_steps']}steps", *count, f"seed{made['seed']}", f"checkpoint{made['checkpoint_step']}"]
    return "_".join([made["sampler"]["name"], *words(options | guidance | labels), *counts])


def words(options: Mapping[str, Any]) -> list[str]:
    """["clip", "eta0.5", "label3,8"]: options as parts of a file's name; strings speak for themselves."""
    return [v if isinstance(v, str) else f"{k}{_word(v)}" for k, v in options.items()]


def _slug(prompts: Sequence[str]) -> str:
    """The first prompt's letters, and a hash of all prompts: safe in a file's name, and another one for others."""
    letters = "".join(c if c.isascii() and c.isalnum() else "-" for c in prompts[0].lower())
    return f"{letters[:40].strip('-')}-{_hash(list(prompts))}"


def _hash(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:8]


def _word(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def save(
    file: Path, arrays: Mapping[str, Any], picture: Any, made: Mapping[str, Any], columns: int | None = None
) -> None:
    """Writes the .npz, and its .png (a grid of samples) and .json beside it; once for all processes."""
    if jax.process_index() == 0:
        np.savez(file, **arrays)
        images.save_png(file.with_suffix(".png"), picture, columns)
        file.with_suffix(".json").write_text(json.dumps(dict(made) | provenance(), indent=2) + "\n")
