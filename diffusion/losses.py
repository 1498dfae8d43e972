"""The losses: noise the batch, ask the network, weigh the error.

L_simple = E_{x_0, t, eps} w(level) rho(F(c_in x_t, cond) - target)    `denoising_loss` (DDPM eq. 12-14, rho = square)
L_vlb    = E_{x_0, t, eps} T L_{t-1}                                   `variational_loss` (DDPM eq. 5, 13)
           its limit of infinitely many steps           `continuous_bound_loss` (Kingma et al. 2021, eq. 17)
L_hybrid = L_simple + weight L_vlb, which trains the variance alone    `denoising_loss` (Nichol & Dhariwal 2021, eq. 16)
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from diffusion import continuous_bound
from diffusion.bound import ChainTerm, prior
from diffusion.gaussian import diffuse
from diffusion.keys import noise, stream
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


class Rows(NamedTuple):
    """What a loss draws for a batch, each field (of `level`, each of its fields) with one row a sample.

    importance, place: of `levels.Draw`. coin: whether the sample sees the network's own estimate; None without any.
    """

    x_0: Any
    cond: dict[str, Any]
    eps: Any
    level: NoiseLevel
    importance: Any
    place: Any
    coin: Any


@dataclass(frozen=True)
class Loss:
    """A loss in parts, so that the gradient of a batch can be gathered from pieces of it (`training.step.gradient`).

    Called as loss(params, batch, key, memory=None) it is (loss, metrics) of the whole batch.

    draw(batch, key, memory) -> rows, a tree of [batch, ...] leaves: the batch, and all that is random about a sample:
            its level, its noise, its coins. Drawn for the batch as a whole, so that pieces change none of it.
    per_sample(params, rows, key) -> (cost, values) of any of the rows: what each adds to the mean that is the loss,
            [rows], and what metrics are made of, {name: [rows]}. key: dropout, which is drawn for whole activations.
    measure(params, rows, values, memory) -> metrics of the batch besides "loss"; the next "memory" too, if it has one.
    finish(gradient, values) -> the gradient to train with: that of the mean cost, but for what takes the whole batch.
    """

    draw: Callable[[Mapping[str, Any], PRNGKeyArray, Any], Any]
    per_sample: Callable[[Any, Any, PRNGKeyArray], tuple[Any, dict[str, Any]]]
    measure: Callable[[Any, Any, Mapping[str, Any], Any], Metrics]
    finish: Callable[[Any, Mapping[str, Any]], Any] = lambda gradient, values: gradient

    def __call__(
        self, params: Any, batch: Mapping[str, Any], key: PRNGKeyArray, memory: Any = None
    ) -> tuple[Float[Array, ""], Metrics]:
        """(loss, metrics) of the batch."""
        rows = self.draw(batch, key, memory)
        cost, values = self.per_sample(params, rows, key)
        loss = cost.mean()
        return loss, {"loss": loss, **self.measure(params, rows, values, memory)}

    def after(self, change: Callable[[Mapping[str, Any], PRNGKeyArray], Mapping[str, Any]]) -> "Loss":
        """The loss of change(batch, key), which is drawn for the batch as a whole too."""
        return dataclasses.replace(self, draw=lambda batch, key, memory: self.draw(change(batch, key), key, memory))


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
    *,
    levels: LevelSampler,
    param: Parameterization,
    weight: Weight,
    norm: str = "l2",
    self_conditioning: bool = False,
    bound: ChainTerm | None = None,
    bound_weight: float = 0.0,
) -> Loss:
    """The mean over batch and pixels of the weighted error of the network's output, as a `Loss`.

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

    def error(params: Any, x_t: Any, rows: Rows, key: Any) -> dict[str, Any]:
        output = _output(apply, params, param, x_t, rows, key)
        F, V = param.halves(output)
        target = param.target(rows.x_0, rows.eps, rows.level)
        loss = weight(rows.level, param) * mean_per_sample(NORMS[norm](F - target))
        if bound is None:
            return {"loss": loss}
        held = jnp.concatenate([jax.lax.stop_gradient(F), V], axis=-1)
        vlb = bound(param.predict(held, x_t, rows.level), rows.x_0, rows.level)
        return {"loss": loss + bound_weight * vlb, "vlb": vlb}

    return _over_levels(error, levels, self_conditioning)


def variational_loss(
    apply: Apply,
    *,
    levels: LevelSampler,
    param: Parameterization,
    bound: ChainTerm,
    self_conditioning: bool = False,
) -> Loss:
    """L_vlb, the variational bound without L_T, in bits per dimension (DDPM eq. 5), as a `Loss`.

    Each sample's own term of the bound at its level, times T; everything else is as in `denoising_loss`. The terms
    differ by orders of magnitude: draw levels with `levels.loss_second_moment` (Nichol & Dhariwal 2021, eq. 18).
    Where no variance is learned it is the bound of the variance that `bound` was made for ("large", as `build` does).
    """

    def error(params: Any, x_t: Any, rows: Rows, key: Any) -> dict[str, Any]:
        output = _output(apply, params, param, x_t, rows, key)
        return {"loss": bound(param.predict(output, x_t, rows.level), rows.x_0, rows.level)}

    return _over_levels(error, levels, self_conditioning)


def _output(apply: Apply, params: Any, param: Parameterization, x_t: Any, rows: Rows, key: PRNGKeyArray) -> Any:
    """The network's output in training; self-conditioned, the samples whose coin says so see its own first estimate."""

    def network(cond: Cond, dropout: str = "dropout") -> Any:
        return param.ask(apply, params, x_t, rows.level, cond=cond, key=stream(key, dropout))

    if rows.coin is None:
        return network(rows.cond)
    nothing = {**rows.cond, "x_0_hat": jnp.zeros_like(x_t)}
    first = param.predict(network(nothing, "dropout of the first"), x_t, rows.level).x_0
    estimate = jax.lax.stop_gradient(jnp.clip(first, -1, 1)) * expand(rows.coin, first)
    return network({**rows.cond, "x_0_hat": estimate})


def continuous_bound_loss(
    apply: Apply,
    *,
    levels: LevelSampler,
    param: Parameterization,
    learned: LearnedSchedule,
    num_values: int,
) -> Loss:
    """The bound of infinitely many steps in bits per dimension, of a network and its schedule, as a `Loss`.

    prior + reconstruction + diffusion (`continuous_bound`), the mean over the batch. The gradient of the schedule's
    shape is that of the mean squared diffusion term over twice its mean (`learned_schedules.for_less_variance`), a mean
    over the whole batch, by which `Loss.finish` divides.

    params:  {"network": ..., "schedule": those of `learned`}; apply takes the whole and reads "network" of it.
    levels:  whose times are drawn, uniform on (0, 1]; the levels at these times are the learned ones.
    memory:  there is none.

    metrics: "loss", its three parts, the standard deviation of the diffusion term over the batch, and the two ends; by
            log-SNR bin, "bin_loss" of the diffusion term and "bin_count".
    """

    def draw(batch: Mapping[str, Any], key: PRNGKeyArray, memory: None) -> Any:
        x_0, cond = batch["image"], {k: v for k, v in batch.items() if k != "image"}
        t = levels(stream(key, "levels"), x_0.shape[0]).t
        return x_0, cond, t, *(noise(stream(key, name), x_0.shape) for name in ("noise", "reconstruction"))

    def per_sample(params: Any, rows: Any, key: PRNGKeyArray) -> tuple[Any, dict[str, Any]]:
        x_0, cond, t, eps, first_eps = rows
        schedule = params["schedule"]
        ends = schedule["ends"]

        def diffusion(model: Any, place: Any) -> Any:
            level, rate = learned.level(model["ends"], t, place)
            x_t = diffuse(x_0, eps, level)
            output = param.ask(apply, model, x_t, level, cond=cond, key=stream(key, "dropout"))
            return BITS * continuous_bound.diffusion(eps, param.predict(output, x_t, level).eps, rate)

        place = learned.place(schedule["shape"], t)
        parts = {
            "diffusion": for_less_variance(diffusion)({"network": params["network"], "ends": ends}, place),
            "reconstruction": BITS * continuous_bound.reconstruction(x_0, first_eps, ends["log_snr_max"], num_values),
            "prior": BITS * prior(x_0, learned.level(ends, 1.0, (1.0, 0.0))[0]),
        }
        return sum(parts.values()), parts

    def finish(gradient: Any, parts: Mapping[str, Any]) -> Any:
        schedule = gradient["schedule"]
        shape = jax.tree.map(lambda leaf: leaf / parts["diffusion"].mean(), schedule["shape"])
        return {**gradient, "schedule": {**schedule, "shape": shape}}

    def measure(params: Any, rows: Any, parts: Mapping[str, Any], memory: None) -> Metrics:
        schedule, t = params["schedule"], rows[2]
        level, _ = learned.level(schedule["ends"], t, learned.place(schedule["shape"], t))
        means = {name: values.mean() for name, values in parts.items()}
        by_level = _by_level({"loss": parts["diffusion"]}, level, jnp.ones_like(t))
        return {**means, "diffusion_std": parts["diffusion"].std(), **schedule["ends"], **by_level}

    return Loss(draw, per_sample, measure, finish)


def guide_loss(
    apply: Apply,
    *,
    levels: LevelSampler,
    param: Parameterization,
    objective: Objective,
    dropout: bool = True,
) -> Loss:
    """How badly the guide reads the conditions of noised images, the mean over the batch, as a `Loss`.

    The levels, the noise and the memory are as in `denoising_loss`, the parameterization only scales x_t and tells the
    network of the level. dropout: False for evaluation. metrics: "bin_accuracy" too, the sums of right first choices.
    """

    def error(params: Any, x_t: Any, rows: Rows, key: Any) -> dict[str, Any]:
        key = stream(key, "dropout") if dropout else None
        output = param.ask(apply, params, x_t, rows.level, cond=rows.cond, key=key)
        cost, right = objective.compare(output, rows.cond)
        return {"loss": cost, "accuracy": right.astype(jnp.float32)}

    return _over_levels(error, levels)


def _over_levels(error: Callable[..., dict[str, Any]], levels: LevelSampler, self_conditioning: bool = False) -> Loss:
    """The loss of error(params, x_t, rows, key) -> {"loss": [rows], ...}, at levels drawn by the key."""
    sampler = adaptive(levels)

    def draw(batch: Mapping[str, Any], key: PRNGKeyArray, memory: Any) -> Rows:
        x_0, cond = batch["image"], {k: v for k, v in batch.items() if k != "image"}
        n = x_0.shape[0]
        level, importance, place = sampler.draw(_begun(memory), stream(key, "levels"), n)
        eps = noise(stream(key, "noise"), x_0.shape)
        coin = jax.random.bernoulli(stream(key, "coin"), 0.5, (n,)) if self_conditioning else None
        return Rows(x_0, cond, eps, level, jnp.broadcast_to(importance, (n,)), place, coin)

    def per_sample(params: Any, rows: Rows, key: PRNGKeyArray) -> tuple[Any, dict[str, Any]]:
        values = error(params, diffuse(rows.x_0, rows.eps, rows.level), rows, key)
        return rows.importance * values["loss"], values

    def measure(params: Any, rows: Rows, values: Mapping[str, Any], memory: Any) -> Metrics:
        metrics, memory = _by_level(values, rows.level, rows.importance), _begun(memory)
        return metrics if memory is None else {**metrics, "memory": sampler.update(memory, rows.place, values["loss"])}

    def _begun(memory: Any) -> Any:
        return sampler.init() if memory is None else memory

    return Loss(draw, per_sample, measure)


def _by_level(per_sample: Mapping[str, Any], level: NoiseLevel, importance: Any) -> Metrics:
    """Sums over the samples of each log-SNR bin, "bin_<name>", and "bin_count" of how many there are."""
    members = jax.nn.one_hot(jnp.digitize(level.log_snr, np.array(LOG_SNR_BINS)), len(LOG_SNR_BINS) + 1, axis=0)
    members *= importance[None]  # a preferred level counts as a uniform one would
    sums = {f"bin_{name}": members @ values for name, values in per_sample.items()}
    return {**sums, "bin_count": members.sum(1)}
