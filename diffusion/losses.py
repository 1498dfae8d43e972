"""The losses: noise the batch, ask the network, weigh the error.

L_simple = E_{x_0, t, eps} w(level) rho(F(c_in x_t, cond) - target)    `denoising_loss` (DDPM eq. 12-14, rho = square)
L_vlb    = E_{x_0, t, eps} T L_{t-1}                                   `variational_loss` (DDPM eq. 5, 13)
           its limit of infinitely many steps           `continuous_bound_loss` (Kingma et al. 2021, eq. 17)
L_hybrid = L_simple + weight L_vlb, which trains the variance alone    `denoising_loss` (Nichol & Dhariwal 2021, eq. 16)
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from diffusion import continuous_bound
from diffusion.bound import ChainTerm, prior
from diffusion.gaussian import diffuse
from diffusion.keys import stream
from diffusion.learned_schedules import LearnedSchedule, for_less_variance
from diffusion.levels import LevelSampler, adaptive
from diffusion.lookup import suggest
from diffusion.objectives import Objective
from diffusion.parameterization import Parameterization
from diffusion.types import BITS, Cond, NoiseLevel, expand, mean_per_sample
from diffusion.weights import Weight

Apply = Callable[..., Any]
Metrics = dict[str, Any]

NORMS: dict[str, Callable[[Any], Any]] = {
    "l2": jnp.square,
    "l1": jnp.abs,
    "huber": lambda r: jnp.where(jnp.abs(r) < 1, 0.5 * r**2, jnp.abs(r) - 0.5),
}

LOG_SNR_BINS = (-6.0, -2.0, 2.0, 6.0)
"""Edges of the bins in which the loss is also reported: the same for every schedule, so that runs compare."""


def check_norm(norm: str) -> None:
    """ValueError for a norm that is not one of NORMS."""
    if norm not in NORMS:
        raise ValueError(f"loss.norm is {norm!r}, which is not known. {suggest(norm, NORMS)}")


def check_cond_dropout(p: float, conditional: bool) -> None:
    """ValueError where it is no probability below 1, or where there is no condition to drop."""
    if not 0 <= p < 1:
        raise ValueError(f"loss.cond_dropout is {p}, expected a probability in [0, 1), such as 0.1; 0 for none.")
    if p and not conditional:
        raise ValueError(
            f"loss.cond_dropout is {p}, but the network reads no condition that could be dropped: write "
            "network.class_conditional=True or network.text_conditional=True, or leave loss.cond_dropout out."
        )


def drop_cond(batch: Mapping[str, Any], key: PRNGKeyArray, p: float, nulls: Mapping[str, int]) -> dict[str, Any]:
    """The batch without the conditions of some samples, with probability p each (Ho & Salimans 2022, algorithm 1).

    nulls: what stands for "no condition" in each entry that is dropped; a sample loses all of them together.
    key: each sample's own coin is drawn from its stream "cond dropout", which nothing else uses.
    """
    coin = jax.random.bernoulli(stream(key, "cond dropout"), p, batch["image"].shape[:1])
    dropped = {k: jnp.where(expand(coin, batch[k]), null, batch[k]) for k, null in nulls.items() if k in batch}
    return {**batch, **dropped}


def denoising_loss(
    apply: Apply,
    params: Any,
    batch: Mapping[str, Any],
    key: PRNGKeyArray,
    *,
    levels: LevelSampler,
    param: Parameterization,
    weight: Weight,
    norm: str = "l2",
    self_conditioning: bool = False,
    memory: Any = None,
    bound: ChainTerm | None = None,
    bound_weight: float = 0.0,
) -> tuple[Float[Array, ""], Metrics]:
    """(loss, metrics): the mean over batch and pixels of the weighted error of the network's output.

    batch:  {"image": float [batch, ...] in [-1, 1], ...}; whatever else it holds goes to the network as cond.
    key:    draws the levels, the noise, the dropout and the self-conditioning coins, by name.
    norm:   "l2" (squared), "l1" or "huber" (quadratic within 1, linear beyond; 0.5 r^2 at the centre).
    self_conditioning:  half of the samples, each by its own coin, see the network's own first estimate of
            x_0, clipped to the data's range, as an extra input; no gradient flows through it (Chen et al. 2022,
            arXiv:2208.04202).
    memory: of `AdaptiveLevels`, from the update before; None is an empty one. metrics["memory"] is the next.
    bound, bound_weight:  where the variance is learned, bound_weight times the bound (`bound.of_chain`) is added, and
            no gradient of it reaches the mean: L_hybrid, with 0.001 for bound_weight.

    metrics:  "loss" and, by log-SNR bin, "bin_loss" and "bin_count" (sums, so that they add up over steps); "bin_vlb"
            of the bound, in bits per dimension.
    """
    x_0 = batch["image"]

    def error(x_t: Any, eps: Any, level: NoiseLevel, cond: dict[str, Any]) -> dict[str, Any]:
        output = _output(apply, params, param, x_t, level, cond, key, self_conditioning)
        F, V = param.halves(output)
        loss = weight(level, param) * mean_per_sample(NORMS[norm](F - param.target(x_0, eps, level)))
        if bound is None:
            return {"loss": loss}
        held = jnp.concatenate([jax.lax.stop_gradient(F), V], axis=-1)
        vlb = bound(param.predict(held, x_t, level), x_0, level)
        return {"loss": loss + bound_weight * vlb, "vlb": vlb}

    return _over_levels(batch, key, error, levels, memory)


def variational_loss(
    apply: Apply,
    params: Any,
    batch: Mapping[str, Any],
    key: PRNGKeyArray,
    *,
    levels: LevelSampler,
    param: Parameterization,
    bound: ChainTerm,
    self_conditioning: bool = False,
    memory: Any = None,
) -> tuple[Float[Array, ""], Metrics]:
    """(loss, metrics): L_vlb, the variational bound without L_T, in bits per dimension (DDPM eq. 5).

    Each sample's own term of the bound at its level, times T; everything else is as in `denoising_loss`. The terms
    differ by orders of magnitude: draw levels with `levels.loss_second_moment` (Nichol & Dhariwal 2021, eq. 18).
    Where no variance is learned it is the bound of the variance that `bound` was made for ("large", as `build` does).
    """
    x_0 = batch["image"]

    def error(x_t: Any, eps: Any, level: NoiseLevel, cond: dict[str, Any]) -> dict[str, Any]:
        output = _output(apply, params, param, x_t, level, cond, key, self_conditioning)
        return {"loss": bound(param.predict(output, x_t, level), x_0, level)}

    return _over_levels(batch, key, error, levels, memory)


def _output(
    apply: Apply,
    params: Any,
    param: Parameterization,
    x_t: Any,
    level: NoiseLevel,
    cond: dict[str, Any],
    key: PRNGKeyArray,
    self_conditioning: bool,
) -> Any:
    """The network's output in training; self-conditioned, half of the samples see its own first estimate."""

    def network(cond: Cond, dropout: str = "dropout") -> Any:
        return param.ask(apply, params, x_t, level, cond=cond, key=stream(key, dropout))

    if not self_conditioning:
        return network(cond)
    nothing = {**cond, "x_0_hat": jnp.zeros_like(x_t)}
    first = param.predict(network(nothing, "dropout of the first"), x_t, level).x_0
    coin = jax.random.bernoulli(stream(key, "coin"), 0.5, (x_t.shape[0],))
    estimate = jax.lax.stop_gradient(jnp.clip(first, -1, 1)) * expand(coin, first)
    return network({**cond, "x_0_hat": estimate})


def continuous_bound_loss(
    apply: Apply,
    params: Any,
    batch: Mapping[str, Any],
    key: PRNGKeyArray,
    *,
    levels: LevelSampler,
    param: Parameterization,
    learned: LearnedSchedule,
    num_values: int,
    memory: None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """(loss, metrics): the bound of infinitely many steps in bits per dimension, of a network and its schedule.

    prior + reconstruction + diffusion (`continuous_bound`), the mean over the batch. The gradient of the schedule's
    shape is that of the mean squared diffusion term over twice its mean (`learned_schedules.for_less_variance`).

    params:  {"network": ..., "schedule": those of `learned`}; apply takes the whole and reads "network" of it.
    levels:  whose times are drawn, uniform on (0, 1]; the levels at these times are the learned ones.
    memory:  there is none.

    metrics: "loss", its three parts, the standard deviation of the diffusion term over the batch, and the two ends; by
            log-SNR bin, "bin_loss" of the diffusion term and "bin_count".
    """
    x_0, cond = batch["image"], {k: v for k, v in batch.items() if k != "image"}
    schedule = params["schedule"]
    ends, t = schedule["ends"], levels(stream(key, "levels"), x_0.shape[0]).t
    eps, first_eps = (jax.random.normal(stream(key, name), x_0.shape) for name in ("noise", "reconstruction"))

    def diffusion(model: Any, place: Any) -> Any:
        level, rate = learned.level(model["ends"], t, place)
        x_t = diffuse(x_0, eps, level)
        output = param.ask(apply, model, x_t, level, cond=cond, key=stream(key, "dropout"))
        return BITS * continuous_bound.diffusion(eps, param.predict(output, x_t, level).eps, rate)

    reconstruction = continuous_bound.reconstruction(x_0, first_eps, ends["log_snr_max"], num_values)
    place = learned.place(schedule["shape"], t)
    per_sample = for_less_variance(diffusion)({"network": params["network"], "ends": ends}, place)
    parts = {
        "diffusion": per_sample.mean(),
        "reconstruction": BITS * reconstruction.mean(),
        "prior": BITS * prior(x_0, learned.level(ends, 1.0, (1.0, 0.0))[0]).mean(),
    }
    loss = sum(parts.values())
    by_level = _by_level({"loss": per_sample}, learned.level(ends, t, place)[0], 1.0)
    return loss, {"loss": loss, **parts, "diffusion_std": per_sample.std(), **ends, **by_level}


def guide_loss(
    apply: Apply,
    params: Any,
    batch: Mapping[str, Any],
    key: PRNGKeyArray,
    *,
    levels: LevelSampler,
    param: Parameterization,
    objective: Objective,
    dropout: bool = True,
    memory: Any = None,
) -> tuple[Float[Array, ""], Metrics]:
    """(loss, metrics): how badly the guide reads the conditions of noised images, the mean over the batch.

    The levels, the noise and the memory are as in `denoising_loss`, the parameterization only scales x_t and tells the
    network of the level. dropout: False for evaluation. metrics: "bin_accuracy" too, the sums of right first choices.
    """

    def error(x_t: Any, eps: Any, level: NoiseLevel, cond: dict[str, Any]) -> dict[str, Any]:
        output = param.ask(apply, params, x_t, level, cond=cond, key=stream(key, "dropout") if dropout else None)
        cost, right = objective.compare(output, cond)
        return {"loss": cost, "accuracy": right.astype(jnp.float32)}

    return _over_levels(batch, key, error, levels, memory)


def _over_levels(
    batch: Mapping[str, Any], key: PRNGKeyArray, error: Callable[..., Any], levels: LevelSampler, memory: Any
) -> tuple[Float[Array, ""], Metrics]:
    """(loss, metrics) of error(x_t, eps, level, cond) -> {"loss": [batch], ...}, at levels drawn by the key."""
    x_0, cond = batch["image"], {k: v for k, v in batch.items() if k != "image"}
    sampler = adaptive(levels)
    memory = sampler.init() if memory is None else memory
    level, importance, place = sampler.draw(memory, stream(key, "levels"), x_0.shape[0])
    eps = jax.random.normal(stream(key, "noise"), x_0.shape, x_0.dtype)
    per_sample = error(diffuse(x_0, eps, level), eps, level, cond)
    loss = (importance * per_sample["loss"]).mean()
    metrics = {"loss": loss, **_by_level(per_sample, level, importance)}
    if memory is not None:
        metrics["memory"] = sampler.update(memory, place, jax.lax.stop_gradient(per_sample["loss"]))
    return loss, metrics


def _by_level(per_sample: Mapping[str, Any], level: NoiseLevel, importance: Any) -> Metrics:
    """Sums over the samples of each log-SNR bin, "bin_<name>", and "bin_count" of how many there are."""
    members = jax.nn.one_hot(jnp.digitize(level.log_snr, np.array(LOG_SNR_BINS)), len(LOG_SNR_BINS) + 1, axis=0)
    members *= jnp.broadcast_to(importance, (1, len(level.log_snr)))  # a preferred level counts as a uniform one would
    sums = {f"bin_{name}": members @ jax.lax.stop_gradient(values) for name, values in per_sample.items()}
    return {**sums, "bin_count": members.sum(1)}
