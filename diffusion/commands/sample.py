"""Sampling from a trained run into a file."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from diffusion import build, sampling
from diffusion.commands import outputs
from diffusion.commands.console import refusing, say
from diffusion.data.scaling import to_uint8


def sample(
    folder: str | Path,
    *,
    num_samples: int = 64,
    num_steps: int | None = None,
    seed: int = 0,
    batch_size: int = 128,
    sampler: Mapping[str, Any] | None = None,
    grid: Mapping[str, Any] | None = None,
    guidance: Mapping[str, Any] | None = None,
    labels: Sequence[int] | None = None,
    prompts: Sequence[str] | None = None,
    checkpoint: int | str | None = None,
) -> Path:
    """Draws samples from the run in the folder and writes them to <folder>/samples/; the path of the .npz.

    sampler, grid, guidance: settings that replace the run's own, as in `build.load`. labels, prompts: the classes and
    the captions to draw, in turn; None is all classes, and some captions of the training set. checkpoint: its step, or
    "best"; None is the newest. The .npz holds `arr_0`,
    uint8 [n, h, w, c], the layout that public FID evaluators read (float32 [n, 2] for points); a PNG grid of the first
    256 and a JSON that says how they were made lie beside it. The rest of the config comes from the folder.
    Refused: before anything is drawn.
    """
    folder = Path(folder).expanduser()
    with refusing():
        run = build.load(folder, checkpoint, sampler=sampler, grid=grid, guidance=guidance)
        asked = outputs.asked(labels, prompts)
        cond = run.cond(num_samples, *asked)
        made = outputs.description(run, num_samples, num_steps, seed, asked)
        place = outputs.open_folder(folder / "samples")
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
    file = place / f"{outputs.file_name(made)}.npz"
    of_images = len(run.shape) == 3
    outputs.save(file, {"arr_0": to_uint8(drawn) if of_images else drawn}, drawn[:256] if of_images else drawn, made)
    seconds = time.perf_counter() - start
    say(f"{num_samples} samples in {seconds:.1f} s: {file} and {file.with_suffix('.png').name} beside it")
    return file
