"""Config -> Run: the only place where a config becomes components (`config.py` says what a config is).

run = build.build(config)              # before training
run = build.load("runs/digits")        # after it: with the parameters of the newest checkpoint
"""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion import augment, guidance, lookup, losses, schedules, workdir
from diffusion.config import BESIDES_OPTIONS, from_json, make
from diffusion.data import pipeline
from diffusion.data.dataset import Dataset
from diffusion.denoiser import network_denoiser
from diffusion.keys import stream
from diffusion.levels import LevelSampler, adaptive
from diffusion.networks.network import Inputs, Network
from diffusion.parameterization import Parameterization
from diffusion.sampling import grids
from diffusion.sampling.sampler import Sampler
from diffusion.schedules import Schedule
from diffusion.training import checkpoint, ema
from diffusion.training.state import TrainState, new_state
from diffusion.types import AnyDenoiser, Cond, Params, Step


class Facts(NamedTuple):
    """What the rest of a run must know of its data set; stored in the run's folder."""

    shape: tuple[int, ...]
    num_values: int
    class_names: tuple[str, ...]
    num_images: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A config, built. Everything but `params` is the same at every step of training.

    denoiser(params, cond) -> Denoiser: the network, its parameterization, x_0's thresholding and guidance.
    loss(params, batch, key, memory=None) -> (loss, metrics); the memory is that of adaptive levels.
    dataset: the training images; None in a loaded run, which does not need them.
    params: what samples are drawn with, the first EMA of a checkpoint; None before training.
    """

    config: ConfigDict
    facts: Facts
    schedule: Schedule
    network: Network
    levels: LevelSampler
    optimizer: Any
    sampler: Sampler
    denoiser: Callable[[Params, Cond], AnyDenoiser]
    loss: Callable[..., tuple[Any, dict[str, Any]]]
    dataset: Dataset | None = None
    params: Params = None
    step: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """One sample's shape, (h, w, c)."""
        return self.facts.shape

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

    def with_params(self, params: Params) -> "Run":
        """This run with other parameters to sample from; what was compiled stays compiled."""
        return dataclasses.replace(self, params=params)

    def cond(self, num_samples: int, labels: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """Conditioning on these labels in turn; None is all classes in turn, or nothing where the run has none."""
        if labels is None and not self.config.network.get("class_conditional"):
            return {}
        asked = np.asarray(range(len(self.facts.class_names)) if labels is None else labels)
        self.check_cond({"label": asked})
        if not asked.size:
            raise ValueError("got no labels, expected a list of one integer or more, such as [3, 8].")
        return {"label": np.resize(asked.astype(np.int32), num_samples)}

    def check_cond(self, cond: Cond) -> None:
        """ValueError if the network cannot be conditioned on these values."""
        if not self.config.network.get("class_conditional"):
            if cond:
                raise ValueError(f"got cond with {sorted(cond)}, but this run is not conditional: leave that out.")
            return
        labels, count = np.asarray(cond.get("label")), len(self.facts.class_names)
        if sorted(cond) != ["label"] or labels.ndim != 1:
            raise ValueError(f"got cond with {sorted(cond)}; expected 'label' alone, an integer for each sample.")
        null = self.config.loss.label_dropout > 0
        wrong = labels[(labels < 0) | (labels >= count + null)]
        if wrong.size or not np.issubdtype(labels.dtype, np.integer):
            known = f"0..{count - 1}" + (f", or {count} for no class" if null else "")
            raise ValueError(f"got labels {wrong[:5]} of type {labels.dtype}, expected integers in {known}.")

    def check_sampler(self, sampler: Sampler) -> None:
        """ValueError for a sampler that the run's guidance does not take."""
        _check_renoises(self.config.guidance.plus_plus, sampler)

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

    def batches(self, process_index: int = 0, process_count: int = 1) -> Any:
        """The endless training stream; [step] gives this process's rows of that step's batch."""
        block, training = self.config.data, self.config.training
        return pipeline.batches(
            self.dataset or open_dataset(self.config, "train"),
            batch_size=training.batch_size,
            seed=self.config.seed,
            flip=block.flip,
            process_index=process_index,
            process_count=process_count,
        )

    @property
    def ema_decays(self) -> dict[str, float]:
        """The decays of the averages of the parameters, by name; samples come from the first."""
        return ema.named(self.config.ema.decays)

    def new_state(self, key: jax.Array) -> TrainState:
        """The training state at step 0."""
        return new_state(self.network.init(key), self.optimizer, self.ema_decays, adaptive(self.levels).init())


def build(config: ConfigDict, facts: Facts | None = None) -> Run:
    """The Run that a config describes. Every error of the config is a ValueError here, before any work.

    facts: what is known of the data set; None opens it (and may prepare or download it) to find out.
    """
    config = config.copy_and_resolve_references()
    _check_training(config)
    _check_augment(config.data)
    losses.check_norm(config.loss.norm)
    losses.check_label_dropout(config.loss.label_dropout, bool(config.network.get("class_conditional")))
    how = _guidance(config)
    schedule = _schedule(config.schedule)
    param = _parameterization(config, schedule)
    weight = make("weight", config.weight, schedule=schedule)
    level_sampler = make("levels", config.levels, schedule=schedule)
    optimizer = make("optimizer", config.optimizer)
    threshold = _threshold(config)
    sampler = make("sampler", config.sampler, schedule=schedule)
    _check_renoises(how.plus_plus, sampler)
    ema.named(config.ema.decays)
    grids.prepare(schedule, make("grid", config.grid, schedule=schedule), sampler)
    dataset = None
    if facts is None:
        dataset = open_dataset(config, "train")
        facts = _facts(dataset)
    inputs = Inputs(
        num_classes=len(facts.class_names),
        self_conditioning=config.loss.self_conditioning,
        augment_label=_augmented(config.data, facts.shape),
        null_label=config.loss.label_dropout > 0,
    )
    network = make("network", config.network, shape=facts.shape, inputs=inputs)

    def loss(params: Params, batch: Any, key: jax.Array, memory: Any = None) -> tuple[Any, dict[str, Any]]:
        if inputs.augment_label:
            batch = _augment(batch, key, config.data.augment)
        if inputs.null_label:
            label = losses.drop_labels(batch["label"], key, config.loss.label_dropout, inputs.num_classes)
            batch = {**batch, "label": label}
        return losses.denoising_loss(
            network.apply,
            params,
            batch,
            key,
            levels=level_sampler,
            param=param,
            weight=weight,
            memory=memory,
            norm=config.loss.norm,
            self_conditioning=config.loss.self_conditioning,
        )

    denoiser = network_denoiser(network, inputs, param, threshold=threshold, how=how)
    return Run(config, facts, schedule, network, level_sampler, optimizer, sampler, denoiser, loss, dataset)


def _schedule(block: ConfigDict) -> Schedule:
    """The schedule, shifted or rescaled where the block says so."""
    schedule = make("schedule", block)
    if block.log_snr_shift is not None:
        schedule = schedules.shift_log_snr(schedule, block.log_snr_shift)
    return schedules.zero_terminal_snr(schedule) if block.zero_terminal_snr else schedule


def _parameterization(config: ConfigDict, schedule: Schedule) -> Parameterization:
    """The parameterization, which tells the network of a level in the schedule's way."""
    param = make("parameterization", config.parameterization, schedule=schedule)
    with np.errstate(divide="ignore"):
        at_the_end = param.coefs(schedule.level(np.asarray(schedule.end)))
    if not np.isfinite(at_the_end).all():
        raise ValueError(
            f"parameterization.name={config.parameterization.name} says nothing of x_0 at pure noise, where "
            f"schedule.name={config.schedule.name} ends. Use parameterization.name=flow, v, x_0 or edm."
        )
    return dataclasses.replace(param, cond=schedule.embed)


def _threshold(config: ConfigDict) -> guidance.Transform:
    block = config.sampler
    options = {"name": block.threshold, "percentile": block.percentile}
    return lookup.make(guidance, guidance.Transform, options, block="sampler.threshold")


def _guidance(config: ConfigDict) -> guidance.Guidance:
    """How samples are guided; ValueError for a wrong option, or where there is no estimate without a label."""
    block = config.guidance
    interval = block.interval
    if interval is not None:
        if len(interval) != 2 or not all(isinstance(end, (int, float)) for end in interval):
            raise ValueError(f"guidance.interval is {interval}, expected two numbers in log-SNR, such as (-4, 2).")
        interval = (float(interval[0]), float(interval[1]))
    try:
        how = guidance.Guidance(float(block.scale), interval, float(block.rescale), block.plus_plus)
    except ValueError as error:
        raise ValueError(f"guidance: {error}") from error
    if how.active and not config.loss.label_dropout:
        raise ValueError(
            f"got guidance.scale={how.scale}, guidance.plus_plus={how.plus_plus}, but the network does not know how to "
            "do without a label: train with loss.label_dropout=0.1 and network.class_conditional=True."
        )
    return how


def _check_renoises(plus_plus: bool, sampler: Sampler) -> None:
    if plus_plus and not sampler.renoises:
        raise ValueError(
            "guidance.plus_plus=True noises the guided x_0 again by the unconditional eps, which only the samplers "
            "ddim and euler do; write sampler.name=ddim."
        )


def _check_augment(block: ConfigDict) -> None:
    if block.augment is None:
        return
    if not 0 < block.augment <= 1:
        raise ValueError(
            f"data.augment is {block.augment}, expected the probability of each transform, above 0 and at most 1, "
            "such as 0.12; leave it out for no augmentation."
        )
    if block.flip:
        raise ValueError(
            f"got data.flip=True together with data.augment={block.augment}, which mirrors half of the images by "
            "itself and tells the network; write data.flip=False."
        )


def _augmented(block: ConfigDict, shape: tuple[int, ...]) -> bool:
    """Whether training images are augmented; ValueError if the samples are no images."""
    if block.augment is not None and len(shape) != 3:
        raise ValueError(
            f"data.augment is {block.augment}, which moves images (h, w, c), but a sample of data.name={block.name} "
            f"has the shape {shape}; leave data.augment out."
        )
    return block.augment is not None


def _augment(batch: Mapping[str, Any], key: jax.Array, p: float) -> dict[str, Any]:
    """The batch with augmented images, and their labels for the network."""
    image, label = augment.geometric(stream(key, "augment"), batch["image"], p)
    return {**batch, "image": image, "augment_label": label}


def open_dataset(config: ConfigDict, split: str) -> Dataset:
    """The configured data set's "train" or "test" part."""
    return make("data", config.data, split=split)


def _facts(dataset: Dataset) -> Facts:
    return Facts(tuple(dataset.shape), dataset.num_values, tuple(dataset.class_names), len(dataset))


def _check_training(config: ConfigDict) -> None:
    training = config.training
    for name in ("num_steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints"):
        if training[name] is None or training[name] < 1:
            raise ValueError(f"training.{name} is {training[name]}, expected a whole number of at least 1.")
    if training.sample_every < 0:
        raise ValueError(f"training.sample_every is {training.sample_every}, expected 0 (no grids) or more.")
    for name, value in {"num_samples": config.logging.num_samples, "sample_steps": config.logging.sample_steps}.items():
        if value is not None and value < 1:
            raise ValueError(f"logging.{name} is {value}, expected a whole number of at least 1.")


def load(
    folder: str | Path,
    step: int | None = None,
    *,
    sampler: Mapping[str, Any] | None = None,
    grid: Mapping[str, Any] | None = None,
    guidance: Mapping[str, Any] | None = None,
) -> Run:
    """A trained run, ready to sample from: `sampling.generate(build.load("runs/digits"))`.

    folder: the --workdir of the training; neither its config nor its data are needed again.
    step: which checkpoint, by default the newest.
    sampler, grid, guidance: settings that replace the run's own, such as sampler={"name": "ddim", "eta": 0.5} or
    guidance={"scale": 3.0}; where the name is another one than the run's, the rest of the run's block does not apply,
    but for the threshold.

    FileNotFoundError if there is no run or no such checkpoint; ValueError for settings that do not exist.
    """
    folder = Path(folder).expanduser()
    settings, facts = workdir.read(folder, "config.json"), workdir.read(folder, "data.json")
    for block, given in {"sampler": sampler or {}, "grid": grid or {}, "guidance": guidance or {}}.items():
        own = settings.get(block, {})
        if given.get("name", own.get("name")) != own.get("name"):  # what was said of the other component is void
            own = {key: own[key] for key in BESIDES_OPTIONS.get(block, ()) if key in own}
        settings[block] = own | dict(given)
    facts = Facts(tuple(facts["shape"]), facts["num_values"], tuple(facts["class_names"]), facts.get("num_images", 0))
    run = build(from_json(settings), facts)
    shape = jax.eval_shape(run.network.init, jax.random.key(0))
    params, step = checkpoint.load_params(folder / "checkpoints", shape, next(iter(run.ema_decays)), step)
    return dataclasses.replace(run, params=params, step=step)
