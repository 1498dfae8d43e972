"""Config blocks -> parts of a run, and the checks of what no component checks itself."""

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from diffusion import guidance, lookup, schedules
from diffusion.config import config as default_config
from diffusion.config import make, to_json
from diffusion.data.dataset import Dataset
from diffusion.objectives import Objective
from diffusion.parameterization import LEARNED, Parameterization
from diffusion.sampling.sampler import Sampler
from diffusion.schedules import Schedule

FIXED = "or --config.parameterization.variance= for a fixed one"
"""How a variance that a config file learns is switched off by a flag: "" is none."""


def make_schedule(block: ConfigDict) -> Schedule:
    """The schedule, shifted or rescaled where the block says so."""
    schedule = make("schedule", block)
    if block.log_snr_shift is not None:
        schedule = schedules.shift_log_snr(schedule, block.log_snr_shift)
    return schedules.zero_terminal_snr(schedule) if block.zero_terminal_snr else schedule


def make_parameterization(config: ConfigDict, schedule: Schedule) -> Parameterization:
    """The parameterization, which tells the network of a level in the schedule's way, and may learn a variance."""
    param = make("parameterization", config.parameterization, schedule=schedule)
    variance = config.parameterization.variance or None
    if variance not in (None, *LEARNED):
        raise ValueError(
            f"parameterization.variance is {variance!r}, which is not known. {lookup.suggest(variance, LEARNED)} Leave "
            f"it out for a fixed variance, {FIXED}."
        )
    return dataclasses.replace(param, cond=schedule.embed, variance=variance)


def check_bound(config: ConfigDict, schedule: Schedule) -> None:
    """ValueError where the bound cannot be trained on, or where nothing trains what the network is to learn."""
    loss, variance = config.loss, config.parameterization.variance
    on_bound = loss.name == "vlb"
    if loss.vlb_weight < 0 or (on_bound and loss.vlb_weight):
        raise ValueError(
            f"got loss.vlb_weight={loss.vlb_weight} with loss.name={loss.name}; expected a positive weight, such as "
            "0.001, beside loss.name=denoising, or 0; loss.name=vlb is the bound alone."
        )
    if variance and not (on_bound or loss.vlb_weight):
        raise ValueError(
            f"got parameterization.variance={variance}, but nothing trains it: add loss.vlb_weight=0.001 (L_hybrid), "
            f"write loss.name=vlb, {FIXED}."
        )
    if loss.vlb_weight and not variance:
        raise ValueError(
            f"got loss.vlb_weight={loss.vlb_weight}, which trains a learned variance alone, and the variance is fixed: "
            "add parameterization.variance=range, write loss.name=vlb, or leave it out (loss.vlb_weight=0)."
        )
    if not (on_bound or loss.vlb_weight):
        return
    if schedule.num_steps is None:
        raise ValueError(
            f"the bound over steps needs a discrete chain, but schedule.name={config.schedule.name} is continuous. Use "
            "weight.name=vlb, which is the diffusion term of infinitely many steps, without prior and reconstruction "
            "and not in bits, or a chain such as cosine_alpha_bar."
        )
    check_unmoved(config)
    if on_bound and loss.norm != "l2":
        raise ValueError(f"got loss.norm={loss.norm} with loss.name=vlb, which has no norm; leave it out.")
    if on_bound:
        check_unused(config, ("weight",))


def check_unmoved(config: ConfigDict) -> None:
    """ValueError where the bound would be that of augmented images."""
    if config.data.augment is not None:
        raise ValueError("data.augment moves pixels off the values whose probability the bound is; leave it out.")


def check_says_x_0(config: ConfigDict, param: Parameterization, schedule: Schedule) -> None:
    """ValueError where the parameterization says nothing of x_0 at the schedule's noisiest level."""
    with np.errstate(divide="ignore"):
        at_the_end = param.coefs(schedule.level(np.asarray(schedule.end)))
    if not np.isfinite(at_the_end).all():
        raise ValueError(
            f"parameterization.name={config.parameterization.name} says nothing of x_0 at pure noise, where "
            f"schedule.name={config.schedule.name} ends. Use parameterization.name=flow, v, x_0 or edm."
        )


def same_levels(one: Schedule, other: Schedule) -> bool:
    """Whether two schedules have the same levels, and tell a network of them in the same way."""
    if (one.num_steps, one.end) != (other.num_steps, other.end):
        return False
    times = np.linspace(0, one.end, 51)[1:] if one.num_steps is None else np.arange(1, one.num_steps + 1)
    with np.errstate(divide="ignore"):
        levels = [schedule.level(times) for schedule in (one, other)]
        told = [schedule.embed(level) for schedule, level in zip((one, other), levels, strict=True)]
    return all(map(np.array_equal, (*levels[0], told[0]), (*levels[1], told[1])))


def make_threshold(config: ConfigDict) -> guidance.Transform:
    """What keeps x_0 in the data's range while it is sampled."""
    block = config.sampler
    options = {"name": block.threshold, "percentile": block.percentile}
    return lookup.make(guidance, guidance.Transform, options, block="sampler.threshold")


def guidance_options(config: ConfigDict) -> guidance.Guidance:
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
    if how.active and not config.loss.cond_dropout:
        raise ValueError(
            f"got guidance.scale={how.scale}, guidance.plus_plus={how.plus_plus}, but the network does not know how to "
            "do without a condition: train with loss.cond_dropout=0.1 and network.class_conditional=True (or "
            "text_conditional)."
        )
    return how


def check_renoises(plus_plus: bool, sampler: Sampler) -> None:
    """ValueError for CFG++ with a sampler that does not noise x_0 again by eps."""
    if plus_plus and not sampler.renoises:
        raise ValueError(
            "guidance.plus_plus=True noises the guided x_0 again by the unconditional eps, which only the samplers "
            "ddim and euler do; write sampler.name=ddim."
        )


def check_no_variance(config: ConfigDict) -> None:
    """ValueError for a variance in a training that has no use for one."""
    if config.parameterization.variance:
        raise ValueError(
            f"got parameterization.variance={config.parameterization.variance} with loss.name={config.loss.name}, "
            f"which learns no variance: leave it out, {FIXED}."
        )


def check_one_batch(config: ConfigDict, objective: Objective) -> None:
    """ValueError for micro-batches of an objective that compares the rows of a batch with each other."""
    count = config.training.microbatches
    if count > 1 and objective.couples:
        raise ValueError(
            f"got training.microbatches={count} with loss.name={config.loss.name}, which compares all rows of a batch "
            "with each other: small batches do not add up to a large one. Leave it out, and where the batch is too "
            "large for the memory lower training.batch_size or use more devices."
        )


def check_learned_variance(config: ConfigDict) -> None:
    """ValueError for a sampler that is to use a learned variance where none is learned."""
    if config.sampler.get("variance") == "learned" and not config.parameterization.variance:
        raise ValueError(
            "got sampler.variance=learned, but the model learns none: train with parameterization.variance=range and "
            "loss.vlb_weight=0.001, or write sampler.variance=large."
        )


def check_augment(block: ConfigDict) -> None:
    """ValueError for an augmentation that is none, or goes together with another."""
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


def augmented(block: ConfigDict, shape: tuple[int, ...]) -> bool:
    """Whether training images are augmented; ValueError if the samples are no images."""
    if block.augment is not None and len(shape) != 3:
        raise ValueError(
            f"data.augment is {block.augment}, which moves images (h, w, c), but a sample of data.name={block.name} "
            f"has the shape {shape}; leave data.augment out."
        )
    return block.augment is not None


def open_dataset(config: ConfigDict, split: str) -> Dataset:
    """The configured data set's "train" or "test" part."""
    return make("data", config.data, split=split)


def reads(block: ConfigDict) -> tuple[str, ...]:
    """The entries of cond that a network of this block reads besides what training adds."""
    options = {"class_conditional": "label", "text_conditional": "text"}
    return tuple(name for option, name in options.items() if block.get(option))


def check_unused(config: ConfigDict, blocks: tuple[str, ...]) -> None:
    """ValueError for an option of these blocks that was set, though a training of this loss does not use it."""
    ours, default = to_json(config), to_json(default_config())
    for block in blocks:
        for key, value in ours[block].items():
            if (block, key) != ("loss", "name") and value != default[block].get(key):
                raise ValueError(
                    f"got {block}.{key}={value} with loss.name={config.loss.name}, which does not use it; leave it out."
                )
