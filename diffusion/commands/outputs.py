"""What commands write into a run's folder: arrays, a picture, and how both were made."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion import build, images, workdir
from diffusion.config import DEFAULTS, to_json
from diffusion.provenance import provenance


def open_folder(folder: Path) -> Path:
    """The folder, made if it is not there; ValueError or OSError where it cannot be written to."""
    workdir.check_writable(folder)
    folder.mkdir(exist_ok=True)
    return folder


def description(
    run: build.Run, num_samples: int, num_steps: int | None, seed: int, labels: Sequence[int] | None
) -> dict[str, Any]:
    """How samples are made: everything that decides their pixels."""
    blocks = to_json(run.config)
    return {
        "sampler": blocks["sampler"],
        "grid": blocks["grid"],
        "guidance": {k: float(v) if k in ("scale", "rescale") else v for k, v in blocks["guidance"].items()},
        "labels": labels,
        "num_steps": len(run.grid(num_steps).h),
        "num_samples": num_samples,
        "seed": seed,
        "checkpoint_step": run.step,
        "ema": next(iter(run.ema_decays)),
    }


def file_name(made: Mapping[str, Any]) -> str:
    """Another name for other samples: ddim_eta0.5_scale2.0_label3_50steps_n64_seed0_checkpoint2000."""
    plain = {"name", "num_steps", "times"}
    options = {k: v for block in ("sampler", "grid") for k, v in made[block].items() if k not in plain}
    grid, times = made["grid"]["name"], made["grid"].get("times")
    options |= {} if grid in ("strided", "all_steps") else {"grid": grid}
    options |= {"times": hashlib.sha256(repr(times).encode()).hexdigest()[:8]} if times else {}
    guidance = {k: v for k, v in made["guidance"].items() if v != DEFAULTS["guidance"][k]}
    labels = {"label": made["labels"]} if made["labels"] else {}
    counts = f"{made['num_steps']}steps_n{made['num_samples']}_seed{made['seed']}_checkpoint{made['checkpoint_step']}"
    return "_".join([made["sampler"]["name"], *words(options | guidance | labels), counts])


def words(options: Mapping[str, Any]) -> list[str]:
    """["clip", "eta0.5", "label3,8"]: options as parts of a file's name; strings speak for themselves."""
    return [v if isinstance(v, str) else f"{k}{_word(v)}" for k, v in options.items()]


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
