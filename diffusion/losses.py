"""The denoising loss: noise the batch, ask the network, weigh the error.

L = E_{x_0, t, eps} w(level) rho(F(c_in x_t, cond) - target)          (DDPM eq. 12-14 with rho = square)
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from diffusion.gaussian import diffuse
from diffusion.keys import stream
from diffusion.levels import LevelSampler, adaptive
from diffusion.lookup import suggest
from diffusion.parameterization import Parameterization
from diffusion.types import Cond, NoiseLevel, expand
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


def check_label_dropout(p: float, class_conditional: bool) -> None:
    """ValueError where it is no probability below 1, or where there is no label to drop."""
    if not 0 <= p < 1:
        raise ValueError(f"loss.label_dropout is {p}, expected a probability in [0, 1), such as 0.1; 0 for none.")
    if p and not class_conditional:
        raise ValueError(
            f"loss.label_dropout is {p}, but the network reads no label that could be dropped: write "
            "network.class_conditional=True, or leave loss.label_dropout out."
        )


def drop_labels(
    label: Int[Array | np.ndarray, " batch"], key: PRNGKeyArray, p: float, null_label: int
) -> Int[Array, " batch"]:
    """The labels, each replaced by null_label with probability p (Ho & Salimans 2022, arXiv:2207.12598, algorithm 1).

    key: each label's own coin is drawn from its stream "label dropout", which nothing else uses.
    """
    return jnp.where(jax.random.bernoulli(stream(key, "label dropout"), p, label.shape), null_label, label)


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
) -> tuple[Float[Array, ""], Metrics]:
    """(loss, metrics): the mean over batch and pixels of the weighted error of the network's output.

    batch:  {"image": float [batch, ...] in [-1, 1], ...}; whatever else it holds goes to the network as cond.
    key:    draws the levels, the noise, the dropout and the self-conditioning coins, by name.
    norm:   "l2" (squared), "l1" or "huber" (quadratic within 1, linear beyond; 0.5 r^2 at the centre).
    self_conditioning:  half of the samples, each by its own coin, see the network's own first estimate of
            x_0, clipped to the data's range, as an extra input; no gradient flows through it (Chen et al. 2022,
            arXiv:2208.04202).
    memory: of `AdaptiveLevels`, from the update before; None is an empty one. metrics["memory"] is the next.

    metrics:  "loss" and, by log-SNR bin, "bin_loss" and "bin_count" (sums, so that they add up over steps).
    """
    x_0, cond = batch["image"], {k: v for k, v in batch.items() if k != "image"}
    sampler = adaptive(levels)
    memory = sampler.init() if memory is None else memory
    level, importance, place = sampler.draw(memory, stream(key, "levels"), x_0.shape[0])
    eps = jax.random.normal(stream(key, "noise"), x_0.shape, x_0.dtype)
    x_t = diffuse(x_0, eps, level)
    c_in = expand(param.coefs(level)[0], x_t)

    def network(cond: Cond, dropout: str = "dropout") -> Any:
        return apply(params, c_in * x_t, param.cond(level), cond=cond, key=stream(key, dropout))

    if self_conditioning:
        first = param.predict(network({**cond, "x_0_hat": jnp.zeros_like(x_0)}, "dropout of the first"), x_t, level).x_0
        coin = jax.random.bernoulli(stream(key, "coin"), 0.5, (x_0.shape[0],))
        cond["x_0_hat"] = jax.lax.stop_gradient(jnp.clip(first, -1, 1)) * expand(coin, first)

    error = NORMS[norm](network(cond) - param.target(x_0, eps, level))
    per_sample = weight(level, param) * error.reshape(error.shape[0], -1).mean(1)
    loss = (importance * per_sample).mean()
    metrics = {"loss": loss, **_by_level(per_sample, level, importance)}
    if memory is not None:
        metrics["memory"] = sampler.update(memory, place, jax.lax.stop_gradient(per_sample))
    return loss, metrics


def _by_level(per_sample: Float[Array, " batch"], level: NoiseLevel, importance: Any) -> Metrics:
    members = jax.nn.one_hot(jnp.digitize(level.log_snr, np.array(LOG_SNR_BINS)), len(LOG_SNR_BINS) + 1, axis=0)
    members *= jnp.broadcast_to(importance, (1, len(per_sample)))  # a preferred level counts as a uniform one would
    return {"bin_loss": members @ jax.lax.stop_gradient(per_sample), "bin_count": members.sum(1)}
