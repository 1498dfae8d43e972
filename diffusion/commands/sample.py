"""Sampling from a trained run into a file."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion import build, images, sampling, workdir
from diffusion.commands.console import Refused
from diffusion.config import DEFAULTS, to_json
from diffusion.data.scaling import to_uint8
from diffusion.provenance import provenance


def sample(
    folder: str | Path,
    *,
    num_samples: int = 64,
    num_steps: int | None = None,
    seed: int = 0,
    batch_size: int = 256,
    sampler: Mapping[str, Any] | None = None,
    grid: Mapping[str, Any] | None = None,
    guidance: Mapping[str, Any] | None = None,
    labels: Sequence[int] | None = None,
) -> Path:
    """Draws samples from the run in the folder and writes them to <folder>/samples/; the path of the .npz.

    sampler, grid, guidance: settings that replace the run's own, as in `build.load`. labels: the classes to draw, in
    turn; None is all of them. The .npz holds `arr_0`, uint8 [n, h, w, c], the layout that public FID evaluators read
    (float32 [n, 2] for points); a PNG grid of the first 256 and a JSON that says how they were made lie beside it.
    The rest of the config comes from the folder.
    Refused: before anything is drawn.
    """
    folder = Path(folder).expanduser()
    try:
        run = build.load(folder, sampler=sampler, grid=grid, guidance=guidance)
        labels = None if labels is None or not len(labels) else np.asarray(labels).tolist()
        cond = run.cond(num_samples, labels)
        made = _description(run, num_samples, num_steps, seed, labels)
        workdir.check_writable(folder / "samples")
        (folder / "samples").mkdir(exist_ok=True)
    except (ValueError, OSError) as error:
        raise Refused(str(error)) from error
    start = time.perf_counter()
    drawn = sampling.generate(
        run,
        num_samples=num_samples,
        seed=seed,
        num_steps=num_steps,
        cond=cond,
        batch_size=batch_size,
        progress=jax.process_index() == 0,
    )
    file = folder / "samples" / f"{_file_name(made)}.npz"
    if jax.process_index() == 0:
        of_images = len(run.shape) == 3
        np.savez(file, arr_0=to_uint8(drawn) if of_images else drawn)
        images.save_png(file.with_suffix(".png"), drawn[:256] if of_images else drawn)
        file.with_suffix(".json").write_text(json.dumps(made | provenance(), indent=2) + "\n")
        seconds = time.perf_counter() - start
        print(f"{num_samples} samples in {seconds:.1f} s: {file} and {file.with_suffix('.png').name} beside it")
    return file


def _description(
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


def _file_name(made: Mapping[str, Any]) -> str:
    """Another name for other samples: ddim_eta0.5_scale2.0_label3_50steps_n64_seed0_checkpoint2000."""
    plain = {"name", "num_steps", "times"}
    options = {k: v for block in ("sampler", "grid") for k, v in made[block].items() if k not in plain}
    grid, times = made["grid"]["name"], made["grid"].get("times")
    options |= {} if grid in ("strided", "all_steps") else {"grid": grid}
    options |= {"times": hashlib.sha256(repr(times).encode()).hexdigest()[:8]} if times else {}
    guidance = {k: v for k, v in made["guidance"].items() if v != DEFAULTS["guidance"][k]}
    labels = {"label": made["labels"]} if made["labels"] else {}
    words = [v if isinstance(v, str) else f"{k}{_word(v)}" for k, v in (options | guidance | labels).items()]
    counts = f"{made['num_steps']}steps_n{made['num_samples']}_seed{made['seed']}_checkpoint{made['checkpoint_step']}"
    return "_".join([made["sampler"]["name"], *words, counts])


def _word(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
