"""Configs: blocks of plain values, each option of which is a flag.

A block with a "name" describes one component, found by `lookup` in the place that the block stands for; its
other keys are that function's keyword arguments:

    schedule = dict(name="cosine_alpha_bar", s=0.008)    ->    schedules.cosine_alpha_bar(s=0.008)

A config file states only what differs from the functions' defaults. `config` declares every other option as
an empty placeholder, so that each of them is also a flag (--config.schedule.s=0.01).
"""

import inspect
from collections.abc import Collection, Mapping
from types import ModuleType
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

from diffusion import data, learned_schedules, levels, lookup, networks, parameterization, sampling, schedules, weights
from diffusion.data.dataset import Dataset
from diffusion.learned_schedules import LearnedSchedule
from diffusion.networks.network import Classifier, Matcher, Network
from diffusion.parameterization import Parameterization
from diffusion.sampling import grids
from diffusion.sampling.sampler import Sampler
from diffusion.schedules import Schedule
from diffusion.training import optim
from diffusion.types import Step


class Place(NamedTuple):
    """Where a block's component is looked up, the types it makes, and what it gets without the config's help.

    elsewhere: further (module, type) pairs.
    """

    module: ModuleType
    returns: tuple[Any, ...]
    context: tuple[str, ...] = ()
    elsewhere: tuple[tuple[ModuleType, Any], ...] = ()

    @property
    def kinds(self) -> tuple[tuple[ModuleType, Any], ...]:
        """Each type with the module that holds its components, the block's ordinary one first."""
        return *((self.module, returns) for returns in self.returns), *self.elsewhere


PLACES = {
    "data": Place(data, (Dataset,), ("split",)),
    "schedule": Place(schedules, (Schedule,), elsewhere=((learned_schedules, LearnedSchedule),)),
    "parameterization": Place(parameterization, (Parameterization,), ("schedule",)),
    "levels": Place(levels, (levels.LevelSampler,), ("schedule",)),
    "weight": Place(weights, (weights.Weight,), ("schedule",)),
    "network": Place(networks, (Network, Classifier, Matcher), ("shape", "inputs")),
    "optimizer": Place(optim, (optim.Optimizer,)),
    "sampler": Place(sampling, (Sampler,), ("schedule",)),
    "grid": Place(grids, (Step,), ("schedule",)),
}
"""The blocks that name a component."""

DEFAULTS: dict[str, Any] = {
    "seed": 0,
    "data": {
        "name": "digits",
        "flip": False,
        "augment": placeholder(float),
        "on_devices": placeholder(bool),
        "num_workers": 0,
    },
    "schedule": {
        "name": "linear_beta",
        "log_snr_shift": placeholder(float),
        "zero_terminal_snr": placeholder(bool),
    },
    "parameterization": {"name": "eps", "variance": placeholder(str)},
    "levels": {"name": "uniform"},
    "loss": {"name": "denoising", "norm": "l2", "self_conditioning": False, "cond_dropout": 0.0, "vlb_weight": 0.0},
    "weight": {"name": "constant"},
    "network": {"name": "unet"},
    "optimizer": {"name": "adam"},
    "ema": {"decays": (0.9999,), "warmup": False},
    "training": {
        "num_steps": placeholder(int),
        "batch_size": 128,
        "microbatches": 1,
        "steps_per_dispatch": 1,
        "log_every": 100,
        "checkpoint_every": 5000,
        "keep_checkpoints": 3,
        "sample_every": 5000,
    },
    "mesh": {"fsdp": 1},
    "sampler": {"name": "ancestral", "threshold": "clip", "percentile": placeholder(float)},
    "grid": {"name": "strided"},
    "guidance": {
        "scale": 1.0,
        "interval": placeholder(tuple),
        "rescale": 0.0,
        "plus_plus": False,
        "guide": placeholder(str),
        "guide_scale": 1.0,
    },
    "logging": {"tensorboard": True, "num_samples": 64, "sample_steps": placeholder(int)},
    "evaluation": {
        "every": 0,
        "reference": placeholder(str),
        "metric": "frechet",
        "num_samples": 1000,
        "sampler": placeholder(str),
        "num_steps": 50,
    },
}
"""Plain DDPM; a placeholder is an option that is left out, but for training.num_steps, which each config gives."""

BESIDES_OPTIONS = {
    "data": ("flip", "augment", "on_devices", "num_workers"),
    "schedule": ("log_snr_shift", "zero_terminal_snr"),
    "parameterization": ("variance",),
    "sampler": ("threshold", "percentile"),
}
"""Keys of a component's block that are not handed to the component."""

PLACES_OF_DATA = ("data_dir", "archive", "path")
"""Keys of the data block that say where the images lie, not what they are."""


def config(**blocks: Any) -> ConfigDict:
    """The full config: DEFAULTS with the given blocks laid over them, and a placeholder for every other option.

    A block that gives its own "name" starts from that name alone. ValueError for an unknown block or key.
    """
    merged: dict[str, Any] = {}
    for block in blocks:
        if block not in DEFAULTS:
            raise ValueError(f"the config has an unknown block {block!r}. {lookup.suggest(block, DEFAULTS)}")
    for block, default in DEFAULTS.items():
        given = blocks.get(block, {} if isinstance(default, dict) else default)
        merged[block] = _block(block, default, given) if isinstance(default, dict) else given
    return ConfigDict(merged)


def _block(block: str, default: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    # a placeholder is an object that holds its value: each config gets its own
    options: dict[str, Any] = {
        key: placeholder(value.get_type()) if isinstance(value, FieldReference) else value
        for key, value in default.items()
    }
    if block in PLACES:
        place = PLACES[block]
        for module, returns in place.kinds:
            types = lookup.option_types(module, returns, context=place.context)
            options |= {name: placeholder(kind) for name, kind in types.items()}
    for key in given:
        if key not in options:
            raise ValueError(f"the config has an unknown key {block}.{key}. {lookup.suggest(key, options)}")
    return options | dict(given)


def switch(config: ConfigDict, overridden: Collection[str]) -> None:
    """Where a flag gave a block another name, empties what the file set for the component that was there before.

    overridden: the keys that flags have set, such as "network.name". In place.
    """
    for block in PLACES:
        if f"{block}.name" in overridden:
            for key in config[block]:
                if f"{block}.{key}" not in overridden and key not in ("name", *BESIDES_OPTIONS.get(block, ())):
                    config[block][key] = None


def check_names(config: ConfigDict) -> None:
    """ValueError, with the nearest name, for a block that names a component that there is not; nothing is built."""
    for block, place in PLACES.items():
        known = {name for module, returns in place.kinds for name in lookup.components(module, returns)}
        if (name := config[block].name) not in known:
            raise ValueError(f"{block}.name is {name!r}, which is not known. {lookup.suggest(name, known)}")


def make(block: str, options: ConfigDict | Mapping[str, Any], returns: Any = None, **context: Any) -> Any:
    """The component of one block, built; see `lookup.make` for the errors. returns: which of the place's types."""
    place = PLACES[block]
    own = {key: value for key, value in options.items() if key not in BESIDES_OPTIONS.get(block, ())}
    module, returns = next(kind for kind in place.kinds if returns is None or kind[1] == returns)
    return lookup.make(module, returns, own, block=block, **context)


def takes(block: str, name: str, key: str) -> bool:
    """Whether the component of that name has this option."""
    known = [lookup.components(module, returns) for module, returns in PLACES[block].kinds]
    functions = [components[name] for components in known if name in components]
    return any(key in inspect.signature(function).parameters for function in functions)


def to_json(config: ConfigDict) -> dict[str, Any]:
    """The config as plain values, without the options that were left to their defaults."""
    plain = config.copy_and_resolve_references().to_dict()
    return {
        block: {key: value for key, value in content.items() if value is not None}
        if isinstance(content, dict)
        else content
        for block, content in plain.items()
    }


def from_json(tree: Mapping[str, Any]) -> ConfigDict:
    """The config that to_json wrote, JSON's lists being tuples again."""

    def tuples(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: tuples(v) for k, v in value.items()}
        return tuple(tuples(v) for v in value) if isinstance(value, list) else value

    return config(**tuples(tree))
