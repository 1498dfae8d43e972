"""Inception-v3 as the FID protocol has it: TensorFlow's network of 2015-12-05, in the layout of pytorch-fid 0.3.0.

It differs from the Inception-v3 that PyTorch ships (Szegedy et al. 2015, arXiv:1512.00567): average pools count the
pixels that exist, the last block has a maximum pool instead, and there are 1008 classes. Layers bear the names of
pytorch-fid's weights file, which `from_torch_state` reads. The network is a table of blocks and three small modules.

The parameters are an argument of `apply`, never a constant of a compiled function: XLA folds constants, for minutes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from diffusion.types import Params

SIZE = 299
"""The height and width that images are resized to."""
SPATIAL_CHANNELS = 7
"""So many channels of the 17x17 pixels of sFID's layer are kept: 2023 numbers, about as many as FID's 2048."""
EPSILON = 1e-3
"""What batch normalisation adds to the variance."""


@dataclass(frozen=True)
class Conv:
    """A convolution without bias, batch normalisation with stored statistics, and a ReLU."""

    name: str
    channels: int
    size: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


def average_pool(x: Array) -> Array:
    """The mean over each 3x3 neighbourhood, of the pixels that lie inside the image."""
    total = lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
    rows, columns = (np.convolve(np.ones(n), np.ones(3))[1:-1] for n in x.shape[1:3])  # 2 3 3 ... 3 2
    return total / np.outer(rows, columns).astype(np.float32)[None, :, :, None]


def max_pool(x: Array) -> Array:
    """The maximum of each 3x3 neighbourhood."""
    return nn.max_pool(x, (3, 3), (1, 1), "SAME")


def halve(x: Array) -> Array:
    """The maximum of each second 3x3 neighbourhood; without padding."""
    return nn.max_pool(x, (3, 3), (2, 2), "VALID")


Layer = Conv | Callable[[Array], Array] | tuple[Conv, ...]
"""A tuple is a fork: each of its convolutions sees the same input, and their outputs are joined."""
Branch = tuple[Layer, ...]
"""Layers one after the other. Branches see the same input, and their outputs are joined in order."""


def _block_35(pool_channels: int) -> tuple[Branch, ...]:
    """Of 35x35 pixels (InceptionA)."""
    return (
        (Conv("branch1x1", 64),),
        (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
        (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3))),
        (average_pool, Conv("branch_pool", pool_channels)),
    )


def _block_17(channels: int) -> tuple[Branch, ...]:
    """Of 17x17 pixels (InceptionC)."""
    wide, tall = (1, 7), (7, 1)
    return (
        (Conv("branch1x1", 192),),
        (
            Conv("branch7x7_1", channels),
            Conv("branch7x7_2", channels, wide),
            Conv("branch7x7_3", 192, tall),
        ),
        (
            Conv("branch7x7dbl_1", channels),
            Conv("branch7x7dbl_2", channels, tall),
            Conv("branch7x7dbl_3", channels, wide),
            Conv("branch7x7dbl_4", channels, tall),
            Conv("branch7x7dbl_5", 192, wide),
        ),
        (average_pool, Conv("branch_pool", 192)),
    )


def _block_8(pool: Callable[[Array], Array]) -> tuple[Branch, ...]:
    """Of 8x8 pixels (InceptionE)."""
    wide, tall = (1, 3), (3, 1)
    return (
        (Conv("branch1x1", 320),),
        (Conv("branch3x3_1", 384), (Conv("branch3x3_2a", 384, wide), Conv("branch3x3_2b", 384, tall))),
        (
            Conv("branch3x3dbl_1", 448),
            Conv("branch3x3dbl_2", 384, (3, 3)),
            (Conv("branch3x3dbl_3a", 384, wide), Conv("branch3x3dbl_3b", 384, tall)),
        ),
        (pool, Conv("branch_pool", 192)),
    )


_TO_17 = (
    (Conv("branch3x3", 384, (3, 3), 2, "VALID"),),
    (
        Conv("branch3x3dbl_1", 64),
        Conv("branch3x3dbl_2", 96, (3, 3)),
        Conv("branch3x3dbl_3", 96, (3, 3), 2, "VALID"),
    ),
    (halve,),
)
_TO_8 = (
    (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2, "VALID")),
    (
        Conv("branch7x7x3_1", 192),
        Conv("branch7x7x3_2", 192, (1, 7)),
        Conv("branch7x7x3_3", 192, (7, 1)),
        Conv("branch7x7x3_4", 192, (3, 3), 2, "VALID"),
    ),
    (halve,),
)
STEM: Branch = (
    Conv("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
    Conv("Conv2d_2a_3x3", 32, (3, 3), 1, "VALID"),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    halve,
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"),
    halve,
)
BLOCKS: dict[str, tuple[Branch, ...]] = {
    "Mixed_5b": _block_35(32),
    "Mixed_5c": _block_35(64),
    "Mixed_5d": _block_35(64),
    "Mixed_6a": _TO_17,
    "Mixed_6b": _block_17(128),
    "Mixed_6c": _block_17(160),
    "Mixed_6d": _block_17(160),
    "Mixed_6e": _block_17(192),
    "Mixed_7a": _TO_8,
    "Mixed_7b": _block_8(average_pool),
    "Mixed_7c": _block_8(max_pool),
}
SPATIAL = "Mixed_6d"
"""TensorFlow's "mixed_6", the seventh block after "mixed". Its first branch, "mixed_6/conv", leads its channels."""


class Unit(nn.Module):
    """One `Conv`."""

    spec: Conv

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels, stride = self.spec.channels, self.spec.stride
        kernel = self.param("kernel", nn.initializers.he_normal(), (*self.spec.size, x.shape[-1], channels))
        scale, var = (self.param(name, nn.initializers.ones, (channels,)) for name in ("scale", "var"))
        bias, mean = (self.param(name, nn.initializers.zeros, (channels,)) for name in ("bias", "mean"))
        layout = ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(  # in full float32, where a GPU or TPU would take fewer digits
            x, kernel, (stride, stride), self.spec.padding, dimension_numbers=layout, precision=lax.Precision.HIGHEST
        )
        factor = scale * lax.rsqrt(var + EPSILON)
        return nn.relu(x * factor[None, None, None] + (bias - mean * factor)[None, None, None])


class Block(nn.Module):
    """Branches of the same input, joined."""

    branches: tuple[Branch, ...]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return jnp.concatenate([_through(branch, x) for branch in self.branches], axis=-1)


class InceptionV3(nn.Module):
    """Images [n, 299, 299, 3] in [-1, 1] -> what `apply` returns."""

    @nn.compact
    def __call__(self, x: Array) -> dict[str, Array]:
        x = _through(STEM, x)
        for name, branches in BLOCKS.items():
            x = Block(branches, name=name)(x)
            if name == SPATIAL:
                spatial = x[..., :SPATIAL_CHANNELS].reshape(x.shape[0], -1)
        pool = x.mean((1, 2))
        logits = nn.Dense(1008, use_bias=False, precision=lax.Precision.HIGHEST, name="fc")(pool)
        return {"pool": pool, "logits": logits, "spatial": spatial}


def init(key: jax.Array) -> Params:
    """Random parameters, float32: He's for kernels, and statistics of mean 0 and variance 1; for tests."""
    return InceptionV3().init(key, jnp.zeros((1, SIZE, SIZE, 3)))["params"]


def apply(params: Params, images: Array | np.ndarray) -> dict[str, Array]:
    """The features of images [n, h, w, c] of any size, grey or in colour, uint8 or in [0, 1]; float32.

    pool:    [n, 2048], the mean over the last 8x8 pixels: FID's and KID's, and those of ADM's precision and recall.
    logits:  [n, 1008], the last layer without its bias, as in the published code of the Inception Score (Salimans et
             al. 2016) and in ADM's; ports that keep the bias give other scores.
    spatial: [n, 2023], the first 7 channels of the seventh block at 17x17 pixels: sFID's (Nash et al. 2021,
             arXiv:2103.03841), pixel by pixel with the channels innermost, as in ADM's evaluation.

    The images are resized to 299x299 as pytorch-fid does, and only then mapped to [-1, 1]. TensorFlow's graph itself,
    which the first FIDs and ADM's were computed with, takes pixel i from i n / 299, not from (i + 1/2) n / 299 - 1/2,
    and maps the byte b to (b - 128) / 128. So its features are close to these, but not the same.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"got images of shape {images.shape}, expected [n, h, w, 1] or [n, h, w, 3].")
    scale = 255 if images.dtype == jnp.uint8 else 1
    x = 2 * resize(jnp.asarray(images, jnp.float32) / scale) - 1
    features: Any = InceptionV3().apply({"params": params}, jnp.broadcast_to(x, (*x.shape[:3], 3)))
    return features


def resize(images: Array) -> Array:
    """[n, h, w, c] -> [n, 299, 299, c], bilinear between pixel centres (align_corners=False), without antialiasing."""
    shape = (images.shape[0], SIZE, SIZE, images.shape[3])
    return jax.image.resize(images, shape, "bilinear", antialias=False)


def from_torch_state(state: Mapping[str, np.ndarray]) -> Params:
    """The parameters in a state dict of pytorch-fid's network, by its names, as float32.

    Left out are the counters of batches, which only training reads, and the last layer's bias (see `apply`).
    ValueError where a name is missing or unknown, or an array has another shape.
    """
    wanted, tree = jax.tree_util.tree_flatten_with_path(jax.eval_shape(init, jax.random.key(0)))
    names = [_torch_name([str(part.key) for part in path]) for path, _ in wanted]
    given = {name for name in state if not name.endswith("num_batches_tracked")} - {"fc.bias"}
    if given != set(names):
        missing, unknown = sorted(set(names) - given), sorted(given - set(names))
        raise ValueError(
            f"these are not the weights of pytorch-fid's Inception-v3: {len(missing)} arrays are missing "
            f"{missing[:3]}, {len(unknown)} are unknown {unknown[:3]}."
        )
    leaves = []
    for name, (_, leaf) in zip(names, wanted, strict=True):
        array = np.asarray(state[name])
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T  # torch has outputs before inputs
        if array.shape != leaf.shape:
            raise ValueError(
                f"{name} has the shape {state[name].shape}, which becomes {array.shape} here, where "
                f"{leaf.shape} is expected."
            )
        leaves.append(np.ascontiguousarray(array, np.float32))
    return jax.tree.unflatten(tree, leaves)


def _through(layers: Branch, x: Array) -> Array:
    """x after these layers; the modules made here belong to the one that calls."""
    for layer in layers:
        if isinstance(layer, Conv):
            x = Unit(layer, name=layer.name)(x)
        elif isinstance(layer, tuple):
            x = jnp.concatenate([Unit(fork, name=fork.name)(x) for fork in layer], axis=-1)
        else:
            x = layer(x)
    return x


def _torch_name(path: list[str]) -> str:
    """Mixed_5b.branch1x1.conv.weight of [Mixed_5b, branch1x1, kernel]."""
    *layer, last = path
    if layer == ["fc"]:
        return "fc.weight"
    of_torch = {"kernel": "conv.weight", "scale": "bn.weight", "bias": "bn.bias"}
    return ".".join([*layer, of_torch.get(last, f"bn.running_{last}")])
