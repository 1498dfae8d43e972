"""What a config becomes: a `Run`, which draws samples, or a `Guide`, which steers those of other runs."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion.build.learned import schedule_of
from diffusion.build.parts import check_renoises, open_dataset
from diffusion.conditions import Conditions
from diffusion.config import make
from diffusion.data import pipeline
from diffusion.data.dataset import Dataset
from diffusion.denoiser import transformed
from diffusion.guidance import Transform, chain
from diffusion.learned_schedules import LearnedSchedule
from diffusion.levels import LevelSampler, adaptive
from diffusion.losses import Loss
from diffusion.networks.network import Network
from diffusion.objectives import Objective, log_likelihood
from diffusion.parameterization import Parameterization
from diffusion.sampling import grids
from diffusion.sampling.sampler import Sampler
from diffusion.schedules import Schedule
from diffusion.training import ema
from diffusion.training.feed import Feed, feed
from diffusion.training.state import TrainState, new_state
from diffusion.types import AnyDenoiser, Array, Cond, NoiseLevel, Params, Step


class Facts(NamedTuple):
    """What the rest of a run must know of its data set; stored in the run's folder."""

    shape: tuple[int, ...]
    num_values: int
    class_names: tuple[str, ...]
    num_images: int = 0
    caption_length: int = 0
    captions: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Trainable:
    """A config, built, with all that training needs. Everything but `params` is the same at every step.

    loss(params, batch, key, memory=None) -> (loss, metrics), in parts; the memory is that of adaptive levels.
    conditions: what it reads besides x_t and the level.
    dataset: the training images; None in a loaded run, which does not need them.
    params: what it is used with, the first EMA of a checkpoint; None before training.
    """

    config: ConfigDict
    facts: Facts
    schedule: Schedule
    network: Network
    levels: LevelSampler
    optimizer: Any
    loss: Loss
    conditions: Conditions
    dataset: Dataset | None = None
    params: Params = None
    step: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """One sample's shape, (h, w, c)."""
        return self.facts.shape

    def batches(self, process_index: int = 0, process_count: int = 1) -> Any:
        """The endless training stream; [step] gives this process's rows of that step's batch."""
        hosts = {"process_index": process_index, "process_count": process_count}
        return pipeline.batches(self._training_set, **self._line, **hosts)

    def feed(self, mesh: Mesh) -> Feed:
        """How the same batches reach the devices of the mesh: data.on_devices and data.num_workers decide."""
        ways = {"on_devices": self.config.data.on_devices, "num_workers": self.config.data.num_workers}
        return feed(self._training_set, mesh, **ways, **self._line)

    @property
    def _training_set(self) -> Dataset:
        return self.dataset or open_dataset(self.config, "train")

    @property
    def _line(self) -> dict[str, Any]:
        """What decides the order of the images, and where they are cut into batches."""
        config = self.config
        return {"batch_size": config.training.batch_size, "seed": config.seed, "flip": config.data.flip}

    @property
    def ema_decays(self) -> dict[str, float]:
        """The decays of the averages of the parameters, by name; samples come from the first."""
        return ema.named(self.config.ema.decays)

    def new_state(self, key: jax.Array) -> TrainState:
        """The training state at step 0."""
        return new_state(self.network.init(key), self.optimizer, self.ema_decays, adaptive(self.levels).init())


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Guide(Trainable):
    """A noise-aware network that says how well x_t fits a label or a caption: a classifier, or an encoder pair.

    test_loss(params, batch, key) -> (loss, metrics), without dropout, for the test set.
    """

    param: Parameterization
    objective: Objective
    test_loss: Loss

    def with_params(self, params: Params) -> "Guide":
        """This guide with other parameters."""
        return dataclasses.replace(self, params=params)

    def log_likelihood(self, params: Params, cond: Cond) -> Callable[[Array, NoiseLevel], Any]:
        """(x_t, level) -> log p(cond | x_t), [batch], up to a constant: minus the energy that guides."""
        return log_likelihood(self.objective, self.network.apply, params, cond, param=self.param)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Run(Trainable):
    """A model that draws samples.

    denoiser(params, cond) -> Denoiser: the network, its parameterization, x_0's thresholding and guidance.
    params: of the network; with a guide, {"network": ..., "guide": ...}; with a learned schedule,
        {"network": ..., "schedule": ...}, and `schedule` is the path of these parameters, or of the first ones.
    """

    sampler: Sampler
    denoiser: Callable[[Params, Cond], AnyDenoiser]
    guide: Guide | None = None
    learned: LearnedSchedule | None = None

    def with_params(self, params: Params) -> "Run":
        """This run with other parameters of its network; what was compiled stays compiled.

        A learned schedule moves with them, and so do grids, and a sampler that sees the schedule.
        """
        if self.learned is not None:
            schedule = schedule_of(self.learned, params)
            sampler = make("sampler", self.config.sampler, schedule=schedule)
            return dataclasses.replace(self, params=params, schedule=schedule, sampler=sampler)
        both = params if self.guide is None else {"network": params, "guide": self.guide.params}
        return dataclasses.replace(self, params=both)

    def transformed(self, *transforms: Transform) -> "Run":
        """This run with its denoiser transformed, such as run.transformed(guidance.energy(f, of="x_0")).

        Keep the result: each call is another function, which is compiled anew.
        """
        change, plain = chain(*transforms), self.denoiser
        return dataclasses.replace(self, denoiser=lambda params, cond: transformed(plain(params, cond), change))

    def grid(self, num_steps: int | None = None, sampler: Sampler | None = None) -> Step:
        """The configured sampling grid, or the same kind with another number of steps, or for another sampler."""
        options = dict(self.config.grid)
        if num_steps is not None:
            options |= {
                "name": "strided" if options["name"] == "all_steps" else options["name"],
                "num_steps": num_steps,
            }
        steps = make("grid", options, schedule=self.schedule)
        return grids.prepare(self.schedule, steps, sampler or self.sampler)

    def at_most(self, num_steps: int) -> int:
        """So many sampling steps, or all of a chain that has fewer."""
        chain = self.schedule.num_steps
        return num_steps if chain is None else min(num_steps, chain)

    def cond(
        self, num_samples: int, labels: Sequence[int] | None = None, prompts: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Conditioning on these labels or prompts in turn, as `Conditions.rows` makes it; {} where the run has none."""
        return self.conditions.rows(num_samples, labels, prompts)

    def check_cond(self, cond: Cond) -> None:
        """ValueError if the network, or its guide, cannot be conditioned on these values."""
        self.conditions.check(cond)

    def check_sampler(self, sampler: Sampler) -> None:
        """ValueError for a sampler that the run's guidance does not take."""
        check_renoises(self.config.guidance.plus_plus, sampler)

    def check_steps(self, steps: Step) -> None:
        """A warning, with both ranges, for levels that the run's schedule, and so its training, does not reach."""
        end = self.schedule.end
        first = 1 if self.schedule.num_steps else end * np.finfo(np.float32).eps
        trained = [float(np.exp(-self.schedule.level(t).log_snr / 2)) for t in (first, end)]
        asked = [float(np.exp(-log_snr / 2)) for log_snr in (steps.now.log_snr.max(), steps.now.log_snr.min())]
        if asked[0] < 0.999 * trained[0] or asked[1] > 1.001 * trained[1]:
            warnings.warn(
                f"the grid asks for sigma / alpha from {asked[0]:.4g} to {asked[1]:.4g}, but the model was trained "
                f"from {trained[0]:.4g} to {trained[1]:.4g}; outside, its estimates are guesses. Make the grid from "
                "the run's own schedule (run.schedule), within this range.",
                stacklevel=3,
            )
