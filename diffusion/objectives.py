"""What a guide is trained for: to read from x_t which class it belongs to, or which caption (`losses.guide_loss`).

Both learn p(condition | x_t, level) at every level of noise, so that the gradient of its logarithm steers a sampler
(`guidance.energy`). They differ in what the network says and how it is compared.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from diffusion.networks.network import Classifier, Matcher, Network
from diffusion.parameterization import Parameterization
from diffusion.types import Array, Cond, NoiseLevel, Params


@dataclass(frozen=True)
class Objective:
    """How a guide's output is compared with the conditions of the batch.

    reads: the entry of cond that it is about.
    network: the kind of network.
    compare(output, cond) -> (loss [batch], right [batch]): its cost, and whether its first choice is the right one.
    log_likelihood(output, cond) -> [batch]: log p(cond | x_t), up to a constant.
    couples: whether the cost of a row depends on which others are in its batch.
    """

    reads: str
    network: type[Network]
    compare: Callable[[Any, Cond], tuple[Any, Any]]
    log_likelihood: Callable[[Any, Cond], Any]
    couples: bool = False


def classification() -> Objective:
    """Cross-entropy of the classes: a noise-aware classifier (Dhariwal & Nichol 2021, arXiv:2105.05233, section 4)."""

    def log_likelihood(logits: Array, cond: Cond) -> Any:
        return jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(cond["label"])[:, None], axis=1)[:, 0]

    def compare(logits: Array, cond: Cond) -> tuple[Any, Any]:
        return -log_likelihood(logits, cond), jnp.argmax(logits, axis=1) == cond["label"]

    return Objective("label", Classifier, compare, log_likelihood)


def contrastive() -> Objective:
    """Cross-entropy of which caption of the batch belongs to which image, and the other way round: a noise-aware CLIP
    (Radford et al. 2021, arXiv:2103.00020, figure 3; on noised images Nichol et al. 2021, GLIDE, arXiv:2112.10741).

    Equal captions in one batch are all right, and share the target; where the images have labels too, so do captions of
    one class, which say the same in other words (Yang et al. 2022, arXiv:2204.03610, eq. 3-5).
    The log-likelihood is the scaled similarity of
    one image and one caption; what it would be normalised by are all captions that there are.
    """

    def compare(output: tuple[Array, Array, Array], cond: Cond) -> tuple[Any, Any]:
        image, text, scale = output
        logits = scale[:, None] * image @ text.T
        tokens = jnp.asarray(cond["text"])
        same = (tokens[:, None, :] == tokens[None, :, :]).all(-1)
        if "label" in cond:
            label = jnp.asarray(cond["label"])
            same |= label[:, None] == label[None, :]
        target = same / same.sum(1, keepdims=True)
        per_image, per_text = (-(target * jax.nn.log_softmax(one)).sum(1) for one in (logits, logits.T))
        right = jnp.take_along_axis(same, jnp.argmax(logits, axis=1)[:, None], axis=1)[:, 0]
        return (per_image + per_text) / 2, right

    def log_likelihood(output: tuple[Array, Array, Array], cond: Cond) -> Any:
        image, text, scale = output
        return scale * (image * text).sum(-1)

    return Objective("text", Matcher, compare, log_likelihood, couples=True)


def log_likelihood(
    objective: Objective, apply: Callable[..., Any], params: Params, cond: Cond, *, param: Parameterization
) -> Callable[[Array, NoiseLevel], Any]:
    """(x_t, level) -> log p(cond | x_t), [batch]: what the trained guide says, without dropout."""

    def of(x_t: Array, level: NoiseLevel) -> Any:
        return objective.log_likelihood(param.ask(apply, params, x_t, level, cond=cond), cond)

    return of
