"""What a training shows, while it runs and at its end: pictures of samples, or how well a guide reads its test set."""

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from diffusion import build, devices, images, keys, points, sampling, workdir
from diffusion.commands.console import say
from diffusion.data import pipeline
from diffusion.data.dataset import Dataset
from diffusion.training.curve import plot_loss
from diffusion.training.logs import Logs, by_level
from diffusion.training.state import TrainState, averaged
from diffusion.types import memoryless

TEST_ROWS = 5000
"""A guide is tested on at least so many noised images; a small test set is read several times, at other levels."""


class Pictures:
    """Samples of a run: the same ones (fixed ids) with the raw parameters and with the EMA."""

    def __init__(self, run: build.Run, folder: Path) -> None:
        self._run, self._folder = run, folder
        self.last_file = folder / "samples.png"

    def show(self, state: TrainState, step: int, logs: Logs) -> None:
        """A grid from each kind of parameters, in samples/."""
        run, logging = self._run, self._run.config.logging
        count = logging.num_samples
        num_steps = None if logging.sample_steps is None else run.at_most(logging.sample_steps)
        for name, params in {"raw": state.params, "ema": averaged(state)}.items():
            drawn = _draw(run.with_params(params), count, num_steps=num_steps)
            if jax.process_index() == 0:
                images.save_png(self._folder / "samples" / f"step_{step:07d}_{name}.png", drawn)
                logs.picture(step, f"samples/{name}", images.picture(drawn))

    def finish(self, state: TrainState) -> None:
        """The final grid with the run's own sampler and grid, the loss curve, and a line that says where they lie."""
        start, count, folder = time.perf_counter(), self._run.config.logging.num_samples, self._folder
        model = self._run.with_params(averaged(state))
        drawn = _draw(model, count)
        if jax.process_index() == 0:
            curve = plot_loss(folder)
            if model.shape == (2,):
                _draw_field(model, drawn, folder)
            images.save_png(self.last_file, drawn)  # last: while it is missing, the same command makes it
        say(f"{count} final samples drawn in {time.perf_counter() - start:.1f} s")
        if jax.process_index() == 0:
            say(f"done: {int(state.step)} steps. Samples: {self.last_file}; loss curve: {curve}; {_places(folder)}")


class Reading:
    """How well a guide reads noised images that it has not seen, by level of noise."""

    def __init__(self, guide: build.Guide, folder: Path) -> None:
        self._guide, self._folder = guide, folder
        self.last_file = folder / "test.json"
        self._split, self._dataset = _test_set(guide)
        self._mesh = devices.data_mesh()
        self._everywhere = devices.replicated(self._mesh)
        self._measure = jax.jit(lambda *given: guide.test_loss(*given)[1], out_shardings=self._everywhere)

    def show(self, state: TrainState, step: int, logs: Logs) -> None:
        """A row of the log: the loss and the accuracy of the averaged parameters."""
        row = self._row(state)
        logs.scalars(step, {f"{self._split}/{name}": value for name, value in row.items()})
        say(f"step {step}: {row['accuracy']:.1%} of the {self._split} set read right over all levels")

    def finish(self, state: TrainState) -> None:
        """test.json, the loss curve, and the accuracy by level in lines."""
        row = self._row(state)
        for name, value in row.items():
            if name.startswith("accuracy"):
                say(f"{self._split} {name.replace('/', ', ')}: {value:.1%}")
        if jax.process_index() == 0:
            curve = plot_loss(self._folder)
            workdir.write(self._folder, self.last_file.name, {"split": self._split, **row})  # last, as samples.png
            say(f"done: {int(state.step)} steps. Loss curve: {curve}; {_places(self._folder)}")
            say(f"it guides a run: python main.py --workdir=... --mode=sample --guide={self._folder}")

    def _row(self, state: TrainState) -> dict[str, float]:
        batch_size, seed = self._guide.config.training.batch_size, self._guide.config.seed
        batches = pipeline.batches(
            self._dataset,
            batch_size=batch_size,
            seed=seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        params = devices.put(averaged(state), self._everywhere)
        key, found = keys.stream(jax.random.key(seed), "test"), []
        for i in range(-(-max(TEST_ROWS, len(self._dataset)) // batch_size)):
            batch = devices.from_local_rows(batches[i], self._mesh)
            found.append(jax.device_get(self._measure(params, batch, keys.at_step(key, i))))
        return by_level(found)


def results(run: build.Run | build.Guide, folder: Path) -> Pictures | Reading:
    """What this kind of run shows: show(state, step, logs) while it goes on, finish(state) at its end.

    last_file is the last one that `finish` makes. A guide's test set is opened here, before anything is spent.
    """
    return Reading(run, folder) if isinstance(run, build.Guide) else Pictures(run, folder)


def _draw(model: build.Run, count: int, **options: Any) -> Any:
    return sampling.generate(model, num_samples=count, seed=model.config.seed, cond=model.cond(count), **options)


def _places(folder: Path) -> str:
    return f"metrics: {folder / 'metrics.jsonl'}; checkpoints: {folder / 'checkpoints'}"


def _test_set(guide: build.Guide) -> tuple[str, Dataset]:
    """The test images, or the training ones where there are no others, and which they are."""
    try:
        return "test", build.open_dataset(guide.config, "test")
    except ValueError as error:
        say(f"tested on the training images, as there are no others: {error}")
        return "train", guide.dataset or build.open_dataset(guide.config, "train")


def _draw_field(run: build.Run, drawn: Any, folder: Path) -> None:
    """score.png: the samples and the learned score field at three levels; none for conditional runs."""
    if run.conditions.names:  # a field for each condition, not one
        return
    denoise = run.denoiser(run.params, {})
    times = run.schedule.time_at(np.array([-4.0, 0.0, 4.0]))
    field = points.score_field(memoryless(denoise, points.PLACES), drawn, run.schedule.level(jax.numpy.asarray(times)))
    Image.fromarray(field).save(folder / "score.png")
