"""Inception-v3 is pytorch-fid's network: its sizes, its parts against float64 recomputations, and its features."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.networks import inception
from experiments.inception_parity import compare
from tests.torch_files.make import FOLDER


@pytest.fixture(scope="module")
def state():
    """The random state dict of experiments/inception_parity, without torch."""
    return {name: compare.weights(name, shape) for name, shape in shapes().items()}


@pytest.fixture(scope="module")
def apply(state):
    params, compiled = inception.from_torch_state(state), jax.jit(inception.apply)
    return lambda images: {k: np.asarray(rows, np.float64) for k, rows in compiled(params, images).items()}


def shapes():
    """{name in a state dict: torch's shape} of every array that is read."""
    found = {}
    of_torch = {"kernel": "conv.weight", "scale": "bn.weight", "bias": "bn.bias", "mean": "bn.running_mean"}
    for path, leaf in jax.tree.leaves_with_path(jax.eval_shape(inception.init, jax.random.key(0))):
        *layer, last = [part.key for part in path]
        name = "weight" if layer == ["fc"] else of_torch.get(last, "bn.running_var")
        order = (3, 2, 0, 1) if leaf.ndim == 4 else range(leaf.ndim)[::-1]
        found[".".join([*layer, name])] = tuple(leaf.shape[axis] for axis in order)
    return found


def random(*shape):
    return np.random.default_rng(0).normal(size=shape)


def test_it_has_the_layers_and_the_numbers_of_the_published_file():
    """pytorch-fid's state dict holds 23,885,486 numbers: these, 1008 of the bias left out, and 94 counters."""
    sizes = {name: int(np.prod(shape)) for name, shape in shapes().items()}
    assert sum(name.endswith("conv.weight") for name in sizes) == 94
    assert sum(".bn." in name for name in sizes) == 4 * 94
    assert sum(sizes.values()) == 23_885_486 - 1008 - 94


def test_features_are_those_of_pytorch_fids_network(apply):
    """Against kept features that PyTorch computed with the same weights (tests/torch_files/make.py)."""
    with np.load(FOLDER / "inception.npz") as kept:
        found = apply(kept["images"])
        for name in ("pool", "logits", "spatial"):
            assert found[name].shape == kept[name].shape
            np.testing.assert_allclose(found[name], kept[name], rtol=0, atol=1e-5 * kept[name].max(), err_msg=name)


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("torch", "torchvision", "pytorch_fid"))),
    reason="needs experiments/inception_parity/requirements.txt",
)
@pytest.mark.parametrize("size", ["32x32", "64x64", "299x299", "28x28, grey"])
def test_features_are_those_of_pytorch_fids_network_today(size, state, apply):
    reference, images = compare.Reference(), compare.pictures(compare.SIZES[size], 2)
    given = {name: array.numpy() for name, array in reference.state.items()}
    for name, array in state.items():
        np.testing.assert_array_equal(given[name], array, err_msg=name)
    found = apply(images)
    for name, rows in reference(images).items():
        assert max(compare.differences(found[name], rows)) < 1e-4, name


def test_bytes_are_255ths_grey_is_all_three_colours_and_images_do_not_see_each_other(apply):
    images = compare.pictures((32, 32, 1), 2)
    found = apply(images)
    images[1] = 255 - images[1]
    for name, rows in apply(np.repeat(images / np.float32(255), 3, axis=-1)).items():
        np.testing.assert_allclose(rows[0], found[name][0], rtol=1e-4, atol=1e-4)
        assert np.abs(rows[1] - found[name][1]).max() > 0.1
    with pytest.raises(ValueError, match=r"got images of shape \(2, 32, 32, 4\), expected \[n, h, w, 1\]"):
        inception.apply({}, jnp.zeros((2, 32, 32, 4)))


@pytest.mark.parametrize("shape", [(32, 48), (299, 17), (512, 300)])
def test_the_resize_is_bilinear_between_pixel_centres(shape):
    """Pixel i of 299 lies at (i + 1/2) n / 299 - 1/2, not outside the first and last centre; no pixel is averaged."""
    images = expected = random(1, *shape, 2)
    for axis, n in enumerate(shape, start=1):
        place = np.clip((np.arange(299) + 0.5) * n / 299 - 0.5, 0, n - 1)
        below = np.floor(place).astype(int)
        share = np.expand_dims(place - below, [a for a in range(4) if a != axis])
        low, high = (np.take(expected, at, axis) for at in (below, np.minimum(below + 1, n - 1)))
        expected = (1 - share) * low + share * high
    np.testing.assert_allclose(inception.resize(jnp.asarray(images, jnp.float32)), expected, atol=5e-4)


def drawn(module, x):
    """Parameters that are nowhere the identity's."""

    def draw(path, leaf):
        if path[-1].key == "kernel":
            return random(*leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        return np.exp(random(*leaf.shape) / 4) if path[-1].key in ("scale", "var") else random(*leaf.shape)

    shapes = jax.eval_shape(module.init, jax.random.key(0), x.astype(np.float32))["params"]
    return jax.tree.map_with_path(draw, shapes)


def applied(module, params, x):
    params, x = jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), (params, x))
    return jax.jit(module.apply)({"params": params}, x)


def unit(params, x, stride=1, same=True):
    """A convolution, pixel by pixel, batch normalisation and ReLU, in float64."""
    kernel = params["kernel"]
    h, w = kernel.shape[:2]
    x = np.pad(x, [(0, 0), (h // 2,) * 2, (w // 2,) * 2, (0, 0)]) if same else x
    rows, columns = (range(0, x.shape[a + 1] - kernel.shape[a] + 1, stride) for a in (0, 1))
    y = np.stack([np.stack([np.tensordot(x[:, i : i + h, j : j + w], kernel, 3) for j in columns], 1) for i in rows], 1)
    normal = (y - params["mean"]) / np.sqrt(params["var"] + 1e-3)
    return np.maximum(normal * params["scale"] + params["bias"], 0)


def around(reduce, x):
    """reduce of the pixels that exist among each one and its eight neighbours."""
    out = np.empty_like(x)
    for i, j in np.ndindex(x.shape[1:3]):
        out[:, i, j] = reduce(x[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2], axis=(1, 2))
    return out


@pytest.mark.parametrize(
    ("size", "stride", "padding"), [((3, 3), 2, "VALID"), ((1, 7), 1, "SAME"), ((7, 1), 1, "SAME")]
)
def test_a_layer_is_a_convolution_normalised_by_stored_statistics(size, stride, padding):
    layer, x = inception.Unit(inception.Conv("layer", 5, size, stride, padding)), random(2, 9, 8, 3)
    params = drawn(layer, x)
    expected = unit(params, x, stride, padding == "SAME")
    assert 0.2 < (expected > 0).mean() < 0.9
    np.testing.assert_allclose(applied(layer, params, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "reduce"), [("Mixed_7b", np.mean), ("Mixed_7c", np.max)])
def test_a_block_joins_its_branches_forks_and_pools(name, reduce):
    """The last two blocks, which differ in their pool alone."""
    block, x = inception.Block(inception.BLOCKS[name]), random(1, 3, 4, 6)
    params = drawn(block, x)

    def through(x, *names):
        for name in names:
            x = unit(params[name], x)
        return x

    def fork(x, *names):
        return [through(x, name) for name in names]

    expected = [
        through(x, "branch1x1"),
        *fork(through(x, "branch3x3_1"), "branch3x3_2a", "branch3x3_2b"),
        *fork(through(x, "branch3x3dbl_1", "branch3x3dbl_2"), "branch3x3dbl_3a", "branch3x3dbl_3b"),
        through(around(reduce, x), "branch_pool"),
    ]
    np.testing.assert_allclose(applied(block, params, x), np.concatenate(expected, -1), rtol=1e-4, atol=1e-4)


def test_the_mean_pool_divides_by_the_pixels_that_exist():
    for shape in [(1, 5, 4, 2), (1, 1, 3, 2)]:
        x = random(*shape)
        pooled = inception.average_pool(jnp.asarray(x, jnp.float32))
        np.testing.assert_allclose(pooled, around(np.mean, x), rtol=1e-5, atol=1e-6)


def test_weights_of_another_network_are_refused(state):
    with pytest.raises(ValueError, match=r"1 arrays are missing \['fc.weight'\], 1 are unknown \['head'\]"):
        inception.from_torch_state({k: v for k, v in state.items() if k != "fc.weight"} | {"head": state["fc.weight"]})
    with pytest.raises(ValueError, match=r"fc.weight has the shape \(1000, 2048\).* \(2048, 1008\) is expected"):
        inception.from_torch_state(state | {"fc.weight": np.zeros((1000, 2048))})
