"""DiT: its published size, its equations in float64, and where a pixel goes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.networks import dit as module
from diffusion.networks.dit import dit, patchify, position_table, unpatchify
from diffusion.networks.network import Inputs
from diffusion.networks.transformer import Attention
from tests.laws import normal, random_params
from tests.networks.test_networks import SMALL, compiled, size

SMALL = SMALL["dit"]


def test_xl_2_has_the_published_number_of_parameters():
    """The official DiT-XL/2 for latents of (32, 32, 4) prints 675,129,632 (1000 classes and the null class).

    That counts its fixed table of 16 x 16 positions, and the last layer also gives the variance of each of the 2x2x4
    values of a patch. Ours has neither.
    """
    classes = {"class_conditional": True, "inputs": Inputs(num_classes=1000, dropped=True)}
    xl_2 = dit((32, 32, 4), patch_size=2, channels=1152, num_blocks=28, num_heads=16, **classes)
    table, variance = 16 * 16 * 1152, (2 * 2 * 4) * (1152 + 1)
    assert size(xl_2) == 675_129_632 - table - variance


def test_the_position_table_is_the_one_of_the_equation():
    rows, columns, channels = 3, 5, 24
    table = position_table(rows, columns, channels)
    assert (table.shape, table.dtype) == ((rows * columns, channels), np.float32)
    for i in range(rows):
        for j in range(columns):
            for k in range(6):
                frequency = math.exp(-math.log(10_000) * k / 6)
                expected = [f(at * frequency) for at in (j, i) for f in (math.sin, math.cos)]
                np.testing.assert_allclose(table[i * columns + j, k::6], expected, atol=1e-7)
    assert len(np.unique(table, axis=0)) == rows * columns, "no two patches look the same"


def test_positions_are_all_that_tells_patches_apart(monkeypatch):
    """Without the table, patches in another order give the output in that order: attention has no order of its own."""
    params, x = random_params(compiled(dit((8, 12, 3), **SMALL))), normal(1, 1, 8, 12, 3)
    order = np.roll(np.arange(24), 5)

    def difference():
        apply = compiled(dit((8, 12, 3), **SMALL)).apply
        first = patchify(apply(params, x, 9, cond={}), 2)[:, order]
        then = patchify(apply(params, unpatchify(patchify(x, 2)[:, order], 2, 8, 12), 9, cond={}), 2)
        return jnp.abs(first - then).max() / jnp.abs(first).max()

    assert difference() > 0.1
    monkeypatch.setattr(module, "position_table", lambda h, w, c: np.zeros((h * w, c), np.float32))
    assert difference() < 1e-5


@pytest.mark.parametrize("size", [1, 2, 4])
def test_patches_lie_row_by_row_and_go_back_to_their_place(size):
    x = np.arange(2 * 8 * 12 * 3, dtype=np.float32).reshape(2, 8, 12, 3)
    patches = patchify(jnp.asarray(x), size)
    for n in range(patches.shape[1]):
        i, j = divmod(n, 12 // size)
        patch = x[:, i * size : (i + 1) * size, j * size : (j + 1) * size]
        np.testing.assert_array_equal(patches[:, n], patch.reshape(2, -1))
    np.testing.assert_array_equal(unpatchify(patches, size, 8, 12), x)


def test_closed_gates_keep_each_patch_to_itself():
    """At the start every block is the identity: with a last layer that is not zero, a patch sees itself alone."""
    network = compiled(dit((8, 12, 3), **SMALL))
    params = network.init(jax.random.key(0))
    params["out"]["Dense_0"]["kernel"] = normal(2, *params["out"]["Dense_0"]["kernel"].shape)
    x = normal(1, 1, 8, 12, 3)
    for i, j in [(0, 0), (1, 4), (3, 5)]:
        patch = np.s_[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        change = network.apply(params, x.at[patch].add(1.0), 9, cond={}) - network.apply(params, x, 9, cond={})
        assert jnp.abs(change[patch]).min() > 0
        assert not change.at[patch].set(0).any()


def reference(params, x, t, label, *, patch, heads):
    """The network's output for one image x [h, w, c], in float64 and written out (sections 3.1 and 3.2)."""
    linear = lambda p, x: x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
    silu = lambda x: x / (1 + np.exp(-x))
    gelu = lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def norm(x, shift, scale):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * (1 + scale) + shift

    def attention(p, x):
        width, out = x.shape[1] // heads, []
        q, k, v = np.split(linear(p["qkv"], x), 3, axis=1)
        for head in range(heads):
            mine = np.s_[:, head * width : (head + 1) * width]
            weights = np.exp(q[mine] @ k[mine].T / math.sqrt(width))
            out.append(weights / weights.sum(1, keepdims=True) @ v[mine])
        return linear(p["out"], np.concatenate(out, axis=1))

    params, x = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, x))
    angles = t * 10_000.0 ** (-np.arange(128) / 127)
    emb = linear(params["level"]["Dense_0"], np.concatenate([np.sin(angles), np.cos(angles)]))
    emb = silu(linear(params["level"]["Dense_1"], silu(emb)) + params["level"]["Embed_0"]["embedding"][label])

    h, w, _ = x.shape
    places = [np.s_[i : i + patch, j : j + patch] for i in range(0, h, patch) for j in range(0, w, patch)]
    tokens = linear(params["patches"], np.stack([x[place].reshape(-1) for place in places]))
    tokens += position_table(h // patch, w // patch, tokens.shape[1])
    for p in (params[name] for name in sorted(params) if name.startswith("block_")):
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = np.split(linear(p["modulation"], emb), 6)
        tokens += gate * attention(p["attention"], norm(tokens, shift, scale))
        tokens += mlp_gate * linear(p["out"], gelu(linear(p["hidden"], norm(tokens, mlp_shift, mlp_scale))))
    out = linear(params["out"], norm(tokens, *np.split(linear(params["modulation"], emb), 2)))
    image = np.zeros_like(x)
    for place, token in zip(places, out, strict=True):
        image[place] = token.reshape(image[place].shape)
    return image


@pytest.mark.parametrize(("shape", "patch"), [((8, 12, 1), 2), ((16, 4, 5), 4)])
def test_the_output_is_that_of_the_equations(shape, patch):
    options = {"class_conditional": True, "inputs": Inputs(num_classes=3), "patch_size": patch, "mlp_ratio": 2.5}
    network = compiled(dit(shape, **SMALL | options))
    params, x = random_params(network), normal(1, 2, *shape)
    out = network.apply(params, x, jnp.array([3, 700]), cond={"label": jnp.array([2, 0])})
    for got, one, t, label in zip(out, x, (3, 700), (2, 0), strict=True):
        expected = reference(params, one, t, label, patch=patch, heads=SMALL["num_heads"])
        np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("shape", "patch"), [((8, 12, 1), 2), ((16, 4, 5), 4)])
def test_any_channels_and_rectangles(shape, patch):
    network = compiled(dit(shape, **SMALL, patch_size=patch))
    params, x = random_params(network), normal(1, 2, *shape)
    moved = network.apply(params, x.at[0, 0, 0, 0].add(1.0), 7, cond={}) - network.apply(params, x, 7, cond={})
    assert moved.shape == x.shape
    assert (jnp.abs(moved[0]) > 0).all(), "every pixel and channel sees the input"
    assert not moved[1].any()


def test_bfloat16_computes_near_float32_and_returns_float32():
    x = normal(1, 2, 8, 8, 3)
    full, half = (compiled(dit((8, 8, 3), **SMALL, dtype=dtype)) for dtype in ("float32", "bfloat16"))
    params = random_params(full)
    out, expected = half.apply(params, x, 5, cond={}), full.apply(params, x, 5, cond={})
    assert out.dtype == jnp.float32
    assert 0 < jnp.abs(out - expected).max() < 0.05 * jnp.abs(expected).max()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_logits_are_float32(dtype):
    """Logits near 300 whose differences of 0.5 bfloat16 would round away."""
    attention = Attention(num_heads=1, dtype=jnp.dtype(dtype))
    x = jnp.array([[[16.0, 0.0, 0.0, 1.0], [16.0, 0.0, 0.0, 0.0]]])
    qkv = np.concatenate([np.diag([2.5, 1, 1, 1]), np.diag([1, 1, 1, 1]), np.diag([0, 0, 0, 1])], axis=1)
    params = {"qkv": {"Dense_0": {"kernel": qkv, "bias": np.zeros(12)}}}
    params["out"] = {"Dense_0": {"kernel": np.eye(4), "bias": np.zeros(4)}}
    out = attention.apply({"params": jax.tree.map(jnp.float32, params)}, x)
    weight = 1 / (1 + math.exp(-0.5))
    np.testing.assert_allclose(out[0, 0, 3].astype(jnp.float32), weight, rtol=1e-2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shape": (2,)}, "takes images .* use network.name=mlp"),
        ({"shape": (30, 32, 3), "patch_size": 4}, "multiples of 4, such as 28x32 or 32x36"),
        ({"shape": (32, 3, 1), "patch_size": 8}, "multiples of 8, such as 32x8 or 40x8"),
        ({"patch_size": 0}, "patch_size=0, expected at least 1"),
        ({"channels": 30, "num_heads": 3}, "channels=30, expected a multiple of 4"),
        ({"channels": 0}, "channels=0, expected a multiple of 4"),
        ({"channels": 64, "num_heads": 6}, "channels=64 and num_heads=6"),
        ({"num_heads": 0}, "num_heads >= 1"),
        ({"num_blocks": 0}, "num_blocks >= 1"),
        ({"mlp_ratio": 0.0}, "an MLP of at least one channel"),
        ({"dropout": 1.0}, "probability"),
        ({"dtype": "float16"}, "expected one of: float32, bfloat16"),
        ({"class_conditional": True}, "needs a data set with labels"),
    ],
)
def test_errors(options, words):
    with pytest.raises(ValueError, match=words):
        dit(**{"shape": (32, 32, 3)} | options)
