"""A network as a denoiser: what it is told besides x_t, what its output means, thresholding and guidance."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffusion import guidance
from diffusion.augment import LABEL_WIDTH
from diffusion.guidance import Guidance, Transform
from diffusion.networks.network import Inputs, Network
from diffusion.parameterization import Parameterization
from diffusion.types import AnyDenoiser, Array, Cond, Denoiser, NoiseLevel, Params, Prediction, SelfConditioned


def network_denoiser(
    network: Network, inputs: Inputs, param: Parameterization, *, threshold: Transform, how: Guidance
) -> Callable[[Params, Cond], AnyDenoiser]:
    """denoiser(params, cond) -> a denoiser of the network, self-conditioned where inputs say so.

    cond:       one row a sample; in guidance's other branch, "label" and "text" are the null ones (`Inputs.nulls`).
    threshold:  applied to the guided estimate, which may leave the data's range; with how.plus_plus to each branch
                instead, between which x_0 then lies, and whose eps is that of unconditional sampling.
    how:        inactive guidance costs nothing; active guidance evaluates the network once on 2 * batch rows.
    """

    def denoiser(params: Params, cond: Cond) -> AnyDenoiser:
        def bind(x_0_hat: Any) -> Denoiser:
            estimate = {"x_0_hat": jnp.clip(x_0_hat, -1, 1)} if inputs.self_conditioning else {}
            given = {**cond, **estimate}
            alone = _plain(network, inputs, param, params, given)
            if not how.active:
                return threshold(alone)
            both = _plain(network, inputs, param, params, _both_branches(given, inputs.nulls))
            if how.plus_plus:
                return guidance.guided(_in_one_batch(threshold(both)), threshold(alone), how)
            return threshold(guidance.guided(_in_one_batch(both), alone, how))

        return SelfConditioned(bind) if inputs.self_conditioning else bind(None)

    return denoiser


def transformed(denoise: AnyDenoiser, transform: Transform) -> AnyDenoiser:
    """The denoiser, self-conditioned or not, with a transform of `guidance`, such as energy or chain."""
    if isinstance(denoise, SelfConditioned):
        return SelfConditioned(lambda x_0_hat: transform(denoise.bind(x_0_hat)))
    return transform(denoise)


def _plain(network: Network, inputs: Inputs, param: Parameterization, params: Params, cond: Cond) -> Denoiser:
    """The network's own prediction."""

    def denoise(x_t: Array, level: NoiseLevel) -> Prediction:
        told = cond
        if inputs.augment_label:  # what is generated is to look like an image that was left as it is
            told = {"augment_label": jnp.zeros((x_t.shape[0], LABEL_WIDTH)), **cond}
        return param.predict(param.ask(network.apply, params, x_t, level, cond=told), x_t, level)

    return denoise


def _both_branches(cond: Cond, nulls: Mapping[str, int]) -> dict[str, jax.Array]:
    """Each row, followed by the same one without its condition.

    Neighbours, not two halves: on several devices both rows of a sample then lie where the sample does.
    """
    without = {k: jnp.full_like(rows, nulls[k]) if k in nulls else rows for k, rows in cond.items()}
    return {k: jnp.stack([rows, without[k]], axis=1).reshape(-1, *rows.shape[1:]) for k, rows in cond.items()}


def _in_one_batch(both: Denoiser) -> guidance.Pair:
    """The predictions of both branches, from one evaluation on [2 * batch] rows, two for each sample."""

    def pair(x_t: Array, level: NoiseLevel) -> tuple[Prediction, Prediction]:
        twice = jax.tree.map(lambda field: jnp.repeat(field, 2) if jnp.ndim(field) else field, level)
        prediction = both(jnp.repeat(x_t, 2, axis=0), twice)
        halves = jax.tree.map(lambda rows: rows.reshape(-1, 2, *rows.shape[1:]), prediction)
        cond, uncond = (jax.tree.map(lambda rows, i=i: rows[:, i], halves) for i in (0, 1))
        return cond, uncond

    return pair
