"""The fence between networks and everything else: a pair of pure functions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion.augment import LABEL_WIDTH
from diffusion.types import Cond, Params


@dataclass(frozen=True)
class Network:
    """A network as two pure functions.

    init(key) -> params, float32.
    apply(params, x, noise_cond, *, cond, key=None) -> output of x's shape, float32; with twice its channels where a
        variance is learned (`Inputs.outputs`).
        x [batch, ...]; noise_cond [] or [batch]: what the parameterization says of the level;
        cond: further inputs, one row a sample (`Inputs`), of which the network takes those that it was made for.
        key: randomness for dropout; None means none (evaluation).
    """

    init: Callable[[jax.Array], Params]
    apply: Callable[..., Any]


@dataclass(frozen=True)
class Classifier(Network):
    """A network whose output is the logits of the classes, [batch, num_classes]: a guide, not a denoiser.

    read(params, x, noise_cond, *, cond, key=None) -> (logits, what the last layer makes them of [batch, d], float32).
    """

    read: Callable[..., Any]


class Matcher(Network):
    """A network whose output is (image [batch, d], text [batch, d], scale [batch]): unit vectors, and what they count.

    The similarity of x_t and the caption cond["text"] of the same row is scale * image . text: a guide, not a denoiser.
    """


class Inputs(NamedTuple):
    """What a network is given besides x and the noise level: facts of the data set and of the training.

    num_classes:        of the data set; 0 where it has none. Whether labels are read, cond["label"] (int [batch] in
                        0..num_classes-1), is the network's own option class_conditional.
    caption_length:     tokens of its captions; 0 where it has none. Whether they are read, cond["text"] (int
                        [batch, caption_length], 0 after the last byte), is the option text_conditional.
    self_conditioning:  the network sees its own last estimate, cond["x_0_hat"], of x's shape.
    augment_label:      it is told how an image was moved, cond["augment_label"], float [batch, 9], see
                        `augment.geometric`.
    outputs:            how many times x's channels the output has: 2 where its second half says a variance.
    dropped:            conditions are dropped in training: the label num_classes stands for "no class", as a caption
                        without a byte does for "no caption".
    """

    num_classes: int = 0
    caption_length: int = 0
    self_conditioning: bool = False
    augment_label: bool = False
    dropped: bool = False
    outputs: int = 1

    @property
    def nulls(self) -> dict[str, int]:
        """What stands for "no condition" in each entry of cond that can be dropped."""
        return {"label": self.num_classes, "text": 0}

    def num_labels(self, class_conditional: bool) -> int:
        """The number of labels that a network embeds: the classes, and "no class" after them; 0 for none."""
        return self.num_classes + self.dropped if class_conditional else 0

    def example(
        self, shape: tuple[int, ...], class_conditional: bool = False, text_conditional: bool = False
    ) -> dict[str, jax.Array]:
        """One example row of each cond entry that is read, for samples of this shape; ValueError where it has none."""
        if class_conditional and self.num_classes < 1:
            raise ValueError("class_conditional=True needs a data set with labels; this one has none.")
        if text_conditional and self.caption_length < 1:
            raise ValueError("text_conditional=True needs a data set with captions; this one has none.")
        labels = {"label": jnp.zeros(1, jnp.int32)} if class_conditional else {}
        labels |= {"text": jnp.zeros((1, self.caption_length), jnp.int32)} if text_conditional else {}
        estimate = {"x_0_hat": jnp.zeros((1, *shape))} if self.self_conditioning else {}
        augmentation = {"augment_label": jnp.zeros((1, LABEL_WIDTH))} if self.augment_label else {}
        return labels | estimate | augmentation


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """The value, if it is allowed; a ValueError that names the option and lists the allowed values otherwise."""
    if value not in allowed:
        raise ValueError(f"got {name}={value!r}, expected one of: {', '.join(allowed)}.")
    return value


def check_dropout(dropout: float) -> None:
    """ValueError where it is no probability below 1."""
    if not 0 <= dropout < 1:
        raise ValueError(f"got dropout={dropout}, expected a probability in [0, 1).")


def near_sizes(shape: tuple[int, ...], step: int) -> str:
    """Such as "24x32 or 32x40": the sizes around shape's h and w that are multiples of step, for an error message."""
    down, up = (tuple(max(step, s // step * step + extra) for s in shape[:2]) for extra in (0, step))
    return f"{down[0]}x{down[1]} or {up[0]}x{up[1]}"


def from_linen(module: nn.Module, shape: tuple[int, ...], example: Cond) -> Network:
    """The Network of a Linen module whose call is (x, noise_cond [batch], cond, train).

    shape is one sample's; example has one row of each cond entry that the module reads, for init.
    """

    def init(key: jax.Array) -> Params:
        return module.init(key, jnp.zeros((1, *shape)), jnp.ones(1), example, False)["params"]

    def apply(params: Params, x: jax.Array, noise_cond: Any, *, cond: Cond, key: jax.Array | None = None) -> Any:
        for name, value in example.items():
            if name not in cond:
                raise ValueError(
                    f'the network is conditioned on {name!r}, but cond has {sorted(cond)}. Pass cond={{"{name}": ...}} '
                    f"with one row of shape {value.shape[1:]} for each sample."
                )
        noise_cond = jnp.broadcast_to(jnp.asarray(noise_cond, jnp.float32), x.shape[:1])
        rngs = None if key is None else {"dropout": key}
        read = {name: cond[name] for name in example}
        return module.apply({"params": params}, x, noise_cond, read, key is not None, rngs=rngs)

    return Network(init, apply)
