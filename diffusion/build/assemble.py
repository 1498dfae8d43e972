"""`build`: a config's parts put together, and `load`: a trained run from its folder."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from diffusion import augment, bound, lookup, losses, objectives, workdir
from diffusion.build import parts
from diffusion.build.learned import make_learned, with_schedule
from diffusion.build.run import Facts, Guide, Run
from diffusion.checks import check_numbers
from diffusion.conditions import Conditions
from diffusion.config import BESIDES_OPTIONS, DEFAULTS, from_json, make, to_json
from diffusion.data.dataset import Dataset
from diffusion.denoiser import network_denoiser, transformed
from diffusion.guidance import energy
from diffusion.keys import stream
from diffusion.learned_schedules import LearnedSchedule
from diffusion.losses import Loss
from diffusion.networks.network import Inputs
from diffusion.objectives import Objective
from diffusion.sampling import grids
from diffusion.schedules import Schedule
from diffusion.training import checkpoint, ema, soundness
from diffusion.types import AnyDenoiser, Cond, Params

DENOISING = ("denoising", "vlb")
"""The losses of runs that draw samples; the others are those of guides."""


def build(config: ConfigDict, facts: Facts | None = None) -> Run | Guide:
    """The Run that a config describes, or the Guide. Every error of the config is a ValueError here, before any work.

    facts: what is known of the data set; None opens it (and may prepare or download it) to find out.
    """
    config = config.copy_and_resolve_references()
    check_numbers(config)
    parts.check_augment(config.data)
    ema.named(config.ema.decays)
    learned = make_learned(config)
    schedule = parts.make_schedule(config.schedule) if learned is None else learned.at(learned.init())
    shared = {
        "schedule": schedule,
        "levels": make("levels", config.levels, schedule=schedule),
        "optimizer": make("optimizer", config.optimizer),
    }
    param = parts.make_parameterization(config, schedule)
    kinds = (*DENOISING, *lookup.components(objectives, Objective))
    if config.loss.name not in kinds:
        raise ValueError(
            f"loss.name is {config.loss.name!r}, which is not known. {lookup.suggest(config.loss.name, kinds)}"
        )
    if config.loss.name in DENOISING:
        return _run(config, facts, param, learned, **shared)
    return _guide(config, facts, param, **shared)


def _run(config: ConfigDict, facts: Facts | None, param: Any, learned: LearnedSchedule | None, **shared: Any) -> Run:
    """The run that learns to denoise."""
    schedule, reads = shared["schedule"], parts.reads(config.network)
    parts.check_says_x_0(config, param, schedule)
    losses.check_norm(config.loss.norm)
    losses.check_cond_dropout(config.loss.cond_dropout, bool(reads))
    if learned is None:  # `make_learned` has checked it
        parts.check_bound(config, schedule)
    how = parts.guidance_options(config)
    weight = make("weight", config.weight, schedule=schedule)
    threshold = parts.make_threshold(config)
    sampler = make("sampler", config.sampler, schedule=schedule)
    parts.check_renoises(how.plus_plus, sampler)
    parts.check_learned_variance(config)
    grids.prepare(schedule, make("grid", config.grid, schedule=schedule), sampler)
    dataset, facts = _data(config, facts)
    inputs = _inputs(config, facts)
    network = with_schedule(make("network", config.network, shape=facts.shape, inputs=inputs), learned)
    guide = _guide_of(config, facts, schedule)

    def seen(batch: Any, key: jax.Array) -> Any:
        batch = _augmented(batch, key, config)
        return losses.drop_cond(batch, key, config.loss.cond_dropout, inputs.nulls) if inputs.dropped else batch

    loss = _denoising(config, facts, param, weight, schedule, learned)(network.apply, levels=shared["levels"])
    denoiser = network_denoiser(network, inputs, param, threshold=threshold, how=how)
    conditions = _conditions(reads, facts, null=reads if inputs.dropped else ())
    if guide is not None:
        denoiser = _guided(denoiser, guide, config.guidance.guide_scale)
        conditions = conditions.joined(guide.conditions)
    return Run(
        config=config,
        facts=facts,
        network=network,
        loss=loss.after(seen),
        conditions=conditions,
        dataset=dataset,
        sampler=sampler,
        denoiser=denoiser,
        guide=guide,
        learned=learned,
        **shared,
    )


def _denoising(
    config: ConfigDict, facts: Facts, param: Any, weight: Any, schedule: Schedule, learned: LearnedSchedule | None
) -> Callable[..., Loss]:
    """make(apply, *, levels) -> the loss: L_simple, L_hybrid or L_vlb, as the config says.

    With a fixed variance L_vlb is the bound of "large", DDPM's and the one that ancestral sampling takes by default,
    whatever sampler.variance says: the mean that is trained is the same up to the weight of each step.
    """
    if learned is not None:
        num_values = facts.num_values
        return functools.partial(losses.continuous_bound_loss, param=param, learned=learned, num_values=num_values)
    options: dict[str, Any] = {"param": param, "self_conditioning": config.loss.self_conditioning}
    if config.loss.name == "vlb" or config.loss.vlb_weight:
        variance = "learned" if param.variance else "large"
        options["bound"] = bound.of_chain(schedule, variance=variance, num_values=facts.num_values)
    if config.loss.name == "vlb":
        return functools.partial(losses.variational_loss, **options)
    options |= {"weight": weight, "norm": config.loss.norm, "bound_weight": config.loss.vlb_weight}
    return functools.partial(losses.denoising_loss, **options)


def _guide(config: ConfigDict, facts: Facts | None, param: Any, **shared: Any) -> Guide:
    """The run that learns to read a class or a caption from x_t."""
    objective = lookup.make(objectives, Objective, {"name": config.loss.name}, block="loss")
    parts.check_unused(config, ("loss", "weight", "sampler", "grid", "guidance", "evaluation"))
    parts.check_no_variance(config)
    parts.check_one_batch(config, objective)
    dataset, facts = _data(config, facts)
    parts.augmented(config.data, facts.shape)
    inputs = Inputs(num_classes=len(facts.class_names), caption_length=facts.caption_length)
    network = make("network", config.network, returns=objective.network, shape=facts.shape, inputs=inputs)
    options = {"levels": shared["levels"], "param": param, "objective": objective}
    return Guide(
        config=config,
        facts=facts,
        network=network,
        loss=losses.guide_loss(network.apply, **options).after(lambda batch, key: _augmented(batch, key, config)),
        test_loss=losses.guide_loss(network.apply, dropout=False, **options),
        conditions=_conditions((objective.reads,), facts),
        dataset=dataset,
        param=param,
        objective=objective,
        **shared,
    )


def _guided(
    denoiser: Callable[[Params, Cond], AnyDenoiser], guide: Guide, scale: float
) -> Callable[[Params, Cond], AnyDenoiser]:
    """The denoiser, pushed by the gradient of the guide's log-likelihood; params are those of both."""

    def both(params: Params, cond: Cond) -> AnyDenoiser:
        likelihood = guide.log_likelihood(params["guide"], cond)
        push = energy(lambda x_t, level: -likelihood(x_t, level), scale)
        return transformed(denoiser(params["network"], cond), push)

    return both


def _guide_of(config: ConfigDict, facts: Facts, schedule: Schedule) -> Guide | None:
    """The guide that the config names ("" is none); ValueError where that is no guide, or one for something else."""
    block = config.guidance
    if not block.guide:
        if block.guide is None and block.guide_scale != DEFAULTS["guidance"]["guide_scale"]:
            raise ValueError(
                f"got guidance.guide_scale={block.guide_scale} without a guide: add guidance.guide=FOLDER, the workdir "
                "of a trained classifier or encoder pair, or mean guidance.scale."
            )
        return None
    try:
        guide = load_guide(block.guide)
    except (ValueError, OSError) as error:
        raise ValueError(f"guidance.guide={block.guide}: {error} (--guide= goes without a guide.)") from error
    what: dict[str, Any] = {"shape": (guide.shape, facts.shape)}
    if not parts.same_levels(guide.schedule, schedule):
        what["schedule"] = (to_json(guide.config)["schedule"], to_json(config)["schedule"])
    if "label" in guide.conditions.names and facts.class_names:
        what["classes"] = (guide.facts.class_names, facts.class_names)
    for name, (there, here) in what.items():
        if there != here:
            raise ValueError(
                f"guidance.guide={block.guide} was trained for another {name}: {there} there, {here} here. Train a "
                "guide on this run's data and schedule."
            )
    return guide


def _data(config: ConfigDict, facts: Facts | None) -> tuple[Dataset | None, Facts]:
    """The training images, opened if nothing is known of them yet, and what is known then."""
    if facts is not None:
        return None, facts
    dataset = parts.open_dataset(config, "train")
    shape, captions = tuple(dataset.shape), (dataset.caption_length, tuple(dataset.captions))
    return dataset, Facts(shape, dataset.num_values, tuple(dataset.class_names), len(dataset), *captions)


def _inputs(config: ConfigDict, facts: Facts) -> Inputs:
    return Inputs(
        num_classes=len(facts.class_names),
        caption_length=facts.caption_length,
        self_conditioning=config.loss.self_conditioning,
        augment_label=parts.augmented(config.data, facts.shape),
        dropped=config.loss.cond_dropout > 0,
        outputs=2 if config.parameterization.variance else 1,
    )


def _conditions(reads: tuple[str, ...], facts: Facts, *, null: tuple[str, ...] = ()) -> Conditions:
    return Conditions(reads, facts.class_names, facts.caption_length, facts.captions, null)


def _augmented(batch: Mapping[str, Any], key: jax.Array, config: ConfigDict) -> Mapping[str, Any]:
    """The batch with augmented images, where the config says so, and with their labels for the network."""
    if config.data.augment is None:
        return batch
    image, label = augment.geometric(stream(key, "augment"), batch["image"], config.data.augment)
    return {**batch, "image": image, "augment_label": label}


def load(
    folder: str | Path,
    step: int | str | None = None,
    *,
    sampler: Mapping[str, Any] | None = None,
    grid: Mapping[str, Any] | None = None,
    guidance: Mapping[str, Any] | None = None,
) -> Run:
    """A trained run, ready to sample from: `sampling.generate(build.load("runs/digits"))`.

    folder: the --workdir of the training; neither its config nor its data are needed again.
    step: which checkpoint, by default the newest; "best" is the one with the best evaluation during training.
    sampler, grid, guidance: settings that replace the run's own, such as sampler={"name": "ddim", "eta": 0.5} or
    guidance={"scale": 3.0}; where the name is another one than the run's, the rest of the run's block does not apply,
    but for the threshold. guidance={"guide": "runs/classifier_digits", "guide_scale": 2.0} loads that guide too.

    FileNotFoundError if there is no run or no such checkpoint; ValueError for settings that do not exist, for the
    folder of a guide, and for a damaged step. Where the newest is damaged, the one before is taken, with a warning.
    """
    if _loss(folder) not in DENOISING:
        raise ValueError(
            f"{folder} holds a guide, which draws no samples: it steers those of other runs, by "
            f'build.load("runs/digits", guidance={{"guide": "{folder}"}}), or --guide={folder} in --mode=sample.'
        )
    run = _load(folder, step, {"sampler": sampler or {}, "grid": grid or {}, "guidance": guidance or {}})
    assert isinstance(run, Run)
    return run


def rebuilt(run: Run, config: ConfigDict) -> Run:
    """The run of another config on the same data, with the parameters that it has."""
    other = build(config, run.facts)
    assert isinstance(other, Run)
    other = other if run.params is None else other.with_params(run.params)
    return dataclasses.replace(other, dataset=run.dataset, step=run.step)


def load_guide(folder: str | Path, step: int | str | None = None) -> Guide:
    """A trained guide, ready to steer: guide.log_likelihood(guide.params, cond); the errors are as in `load`."""
    guide = _load(folder, step, {})
    if not isinstance(guide, Guide):
        raise ValueError(
            f"{folder} holds a run that draws samples, expected a guide: a training of configs/classifier_digits.py, "
            "or of another config with loss.name=classification or contrastive."
        )
    return guide


def _loss(folder: str | Path) -> str:
    """What the run in the folder was trained with."""
    return workdir.read(Path(folder).expanduser(), "config.json").get("loss", {}).get("name", DENOISING[0])


def _load(folder: str | Path, step: int | str | None, replaced: Mapping[str, Mapping[str, Any]]) -> Run | Guide:
    folder = Path(folder).expanduser()
    settings, known = workdir.read(folder, "config.json"), workdir.read(folder, "data.json")
    for block, given in replaced.items():
        own = settings.get(block, {})
        if given.get("name", own.get("name")) != own.get("name"):  # what was said of the other component is void
            own = {key: own[key] for key in BESIDES_OPTIONS.get(block, ()) if key in own}
        settings[block] = own | dict(given)
    facts: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
    run = build(from_json(settings), Facts(**facts))
    shape = jax.eval_shape(run.network.init, jax.random.key(0))
    saved = folder / "checkpoints"
    params, found = checkpoint.load_params(saved, shape, next(iter(run.ema_decays)), _step(saved, step))
    return dataclasses.replace(run.with_params(params), step=found)


def _step(saved: Path, step: int | str | None) -> int | None:
    """The step that is meant; None is the newest."""
    if step == "best":
        best = soundness.best_step(saved)
        if best is None:
            raise ValueError(
                f"no checkpoint in {saved} was evaluated, so none is the best: train with evaluation.every=1000 and "
                "evaluation.reference=FILE, or name a step."
            )
        return best
    if isinstance(step, str) and not step.isdigit():
        raise ValueError(f"got the checkpoint {step!r}, expected a step, such as 2000, or best.")
    return None if step is None else int(step)
