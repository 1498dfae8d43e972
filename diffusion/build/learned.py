"""A schedule that is trained with the network: its checks, and the two as one, for all that carries parameters."""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion import devices, learned_schedules, lookup
from diffusion.build.parts import check_unmoved, check_unused
from diffusion.config import make
from diffusion.learned_schedules import LearnedSchedule
from diffusion.networks.network import Network
from diffusion.schedules import Schedule
from diffusion.types import Params, float32

UNIFORM = ("uniform", "stratified", "antithetic")
"""The level distributions whose times are uniform, as the bound wants them."""


def make_learned(config: ConfigDict) -> LearnedSchedule | None:
    """The learned schedule that the config names, or None; ValueError for what it cannot be trained with."""
    name = config.schedule.name
    if name not in lookup.components(learned_schedules, LearnedSchedule):
        return None
    loss = config.loss
    if loss.name != "vlb":
        raise ValueError(
            f"schedule.name={name} is trained on the bound: got loss.name={loss.name}, write loss.name=vlb."
        )
    if loss.norm != "l2" or loss.self_conditioning:
        raise ValueError(
            f"got loss.norm={loss.norm}, loss.self_conditioning={loss.self_conditioning}, which are not for the "
            f"bound that trains schedule.name={name}; leave them out."
        )
    if loss.vlb_weight or config.parameterization.variance:
        raise ValueError(
            f"got loss.vlb_weight={loss.vlb_weight}, parameterization.variance={config.parameterization.variance} with "
            f"schedule.name={name}: infinitely many steps have no variance to learn; leave them out."
        )
    if config.schedule.log_snr_shift is not None or config.schedule.zero_terminal_snr:
        raise ValueError(
            f"schedule.name={name} learns its ends: leave out schedule.log_snr_shift and schedule.zero_terminal_snr, "
            "and start from other ends with schedule.log_snr_max and schedule.log_snr_min."
        )
    if config.levels.name not in UNIFORM:
        raise ValueError(
            f"got levels.name={config.levels.name}, but schedule.name={name} learns how often each level is drawn, "
            f"from uniform times: write levels.name={', '.join(UNIFORM[:-1])} or {UNIFORM[-1]}."
        )
    check_unmoved(config)
    if config.guidance.guide:
        raise ValueError(
            f"guides are trained on fixed levels, those of schedule.name={name} are learned: no guide fits."
        )
    check_unused(config, ("weight",))
    return make("schedule", config.schedule, returns=LearnedSchedule)


def with_schedule(network: Network, learned: LearnedSchedule | None) -> Network:
    """The network, whose parameters are {"network": ..., "schedule": ...} where the schedule is learned."""
    if learned is None:
        return network
    first = learned.init()

    def init(key: jax.Array) -> Params:
        return {"network": network.init(key), "schedule": float32(first)}

    def apply(params: Params, x: Any, noise_cond: Any, **options: Any) -> Any:
        return network.apply(params["network"], x, noise_cond, **options)

    return Network(init, apply)


def schedule_of(learned: LearnedSchedule, params: Params) -> Schedule:
    """The path of a training's parameters, float64 on the host."""
    return learned.at(jax.tree.map(lambda leaf: np.asarray(devices.fetch(leaf), np.float64), params["schedule"]))
