import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.networks import layers, winograd
from diffusion.networks.layers import GroupNorm
from diffusion.networks.unet import unet
from diffusion.networks.winograd import winograd_3x3
from tests.laws import random_params


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def direct(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def value_and_gradients(f, cotangent, *args):
    def both(cotangent, *args):
        value, pullback = jax.vjp(f, *args)
        return value, *pullback(cotangent)

    return jax.jit(both)(cotangent, *args)


def relative_error(got, expected):
    return float(jnp.abs(got - expected).max() / expected.std())


@pytest.mark.parametrize("channels", [6, 32, 96])
def test_group_norm_equals_flax_in_value_and_gradient(channels):
    x, g = 3 * normal(0, 2, 4, 6, channels) + 1, normal(1, 2, 4, 6, channels)
    params = {"scale": normal(2, channels), "bias": normal(3, channels)}
    own = value_and_gradients(lambda p, x: GroupNorm(jnp.float32).apply({"params": p}, x), g, params, x)
    reference = nn.GroupNorm(layers.num_groups(channels), epsilon=1e-6)
    theirs = value_and_gradients(lambda p, x: reference.apply({"params": p}, x), g, params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), own, theirs)


def test_group_norm_keeps_its_statistics_in_float32():
    x = (100 + normal(0, 1, 16, 16, 32)).astype(jnp.bfloat16)
    y, _ = GroupNorm(jnp.bfloat16).init_with_output(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    group = np.asarray(y, np.float32)[0, :, :, : 32 // layers.num_groups(32)]
    assert abs(group.mean()) < 0.01
    assert abs(group.std() - 1) < 0.01


@pytest.mark.parametrize("size", [(8, 8), (5, 3), (1, 1), (9, 14)])
def test_winograd_equals_the_direct_convolution(size):
    x, g = normal(0, 2, *size, 48), normal(1, 2, *size, 32)
    kernel = normal(2, 3, 3, 48, 32) / 20
    for got, expected in zip(
        value_and_gradients(winograd_3x3, g, x, kernel), value_and_gradients(direct, g, x, kernel), strict=True
    ):
        assert got.shape == expected.shape
        assert relative_error(got, expected) < 1e-4


def test_winograd_is_nearly_as_exact_as_float32_allows():
    x, kernel = normal(0, 4, 16, 16, 64), normal(1, 3, 3, 64, 64) / 24
    patches = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    exact = sum(
        patches[:, i : i + 16, j : j + 16] @ np.asarray(kernel, np.float64)[i, j] for i in range(3) for j in range(3)
    )
    error = (winograd_3x3(x, kernel) - exact) / exact.std()
    assert np.sqrt(np.square(error).mean()) < 2e-6
    assert np.abs(error).max() < 1e-5


def test_layers_of_one_shape_are_traced_once(monkeypatch):
    patches, called = winograd._patches, []
    monkeypatch.setattr(winograd, "_patches", lambda x: called.append(1) or patches(x))

    def traces(x, depth):
        def network(kernel):
            h = x
            for _ in range(depth):
                h = jnp.tanh(winograd_3x3(h, kernel))
            return h.sum()

        del called[:]
        jax.make_jaxpr(jax.grad(network))(normal(2, 3, 3, 5, 5))
        return len(called)

    assert traces(normal(0, 1, 7, 6, 5), depth=5) == traces(normal(0, 1, 6, 7, 5), depth=2) > 0


def test_the_network_is_the_same_function_with_either_convolution(monkeypatch):
    network = unet((8, 8, 3), channels=64, channel_mults=(1,), num_blocks=1, attention_resolutions=())
    params = random_params(network, scale=0.02)
    x, called = normal(1, 2, 8, 8, 3), []
    monkeypatch.setattr(layers, "winograd_3x3", lambda *args: called.append(1) or winograd_3x3(*args))
    outputs = []
    for backend in ("cpu", "tpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        del called[:]
        outputs.append(jax.jit(lambda p, x: network.apply(p, x, jnp.ones(2), cond={}))(params, x))
        assert bool(called) == (backend == "cpu")
    assert relative_error(*outputs) < 3e-5
