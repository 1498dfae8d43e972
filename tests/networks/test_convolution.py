import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusion.networks import convolution, winograd
from diffusion.networks.convolution import direct
from diffusion.networks.unet import unet
from diffusion.networks.winograd import winograd_3x3
from diffusion.training.costs import flops
from tests.laws import normal, random_params, value_and_gradients


def plain(x, kernel, strides=(1, 1), pads="SAME"):
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def relative_error(got, expected):
    return float(jnp.abs(got - expected).max() / expected.std())


def everything(convolve, x, kernel, dx, d_kernel):
    """What differentiation makes of a convolution: either mode, one over the other, and vmap."""

    def of_kernel(kernel):
        return jax.grad(lambda kernel: (convolve(x, kernel) ** 3).sum())(kernel)

    y, back = jax.vjp(convolve, x, kernel)
    return {
        "value": y,
        "reverse": back(y + 1),
        "forward": jax.jvp(convolve, (x, kernel), (dx, d_kernel))[1],
        "forward, of the image alone": jax.jvp(lambda x: convolve(x, kernel), (x,), (dx,))[1],
        "forward, of the kernel alone": jax.jvp(lambda kernel: convolve(x, kernel), (kernel,), (d_kernel,))[1],
        "forward over reverse": jax.jvp(of_kernel, (kernel,), (d_kernel,))[1],
        "reverse over reverse": jax.grad(lambda kernel: jnp.square(of_kernel(kernel)).sum())(kernel),
        "mapped": jax.vmap(convolve)(jnp.stack([x, dx]), jnp.stack([kernel, d_kernel])),
    }


def assert_same_calculus(convolve, reference, size, window, tolerance):
    """`everything`, to `tolerance` of its largest number."""
    arrays = normal(0, 2, *size, 3), normal(1, *window, 3, 4), normal(2, 2, *size, 3), normal(3, *window, 3, 4)
    got, expected = (jax.jit(lambda *arrays, f=f: everything(f, *arrays))(*arrays) for f in (convolve, reference))
    for name in expected:
        for a, b in zip(jax.tree.leaves(got[name]), jax.tree.leaves(expected[name]), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max(), err_msg=name)


@pytest.mark.parametrize(
    ("size", "window", "strides", "pads"),
    [
        ((8, 8), (3, 3), (1, 1), ((1, 1), (1, 1))),
        ((7, 10), (3, 3), (2, 2), ((1, 1), (0, 1))),
        ((9, 8), (2, 3), (3, 2), ((0, 0), (0, 0))),
        ((8, 8), (1, 1), (2, 2), ((0, 0), (0, 0))),
        ((5, 8), (3, 3), (1, 2), ((4, 3), (0, 5))),
    ],
)
def test_a_direct_convolution_is_differentiated_as_xla_does(size, window, strides, pads):
    ours, reference = (lambda x, kernel, f=f: f(x, kernel, strides, pads) for f in (direct, plain))
    assert_same_calculus(ours, reference, size, window, tolerance=1e-6)


def test_winograd_is_differentiated_as_the_direct_convolution():
    assert_same_calculus(winograd_3x3, plain, (5, 6), (3, 3), tolerance=3e-5)


@pytest.mark.parametrize("asked", [(0,), (1,), (0, 1)])
def test_what_is_not_asked_for_costs_nothing(asked):
    """Guidance wants the image's gradient alone, the first layer of a training the kernel's."""

    def cost(x, kernel):
        return jnp.square(direct(x, kernel, (2, 2), ((1, 1), (1, 1)))).sum()

    arrays = normal(0, 2, 8, 8, 3), normal(1, 3, 3, 3, 4)
    once = flops(jax.make_jaxpr(cost)(*arrays))
    assert flops(jax.make_jaxpr(jax.grad(cost, asked))(*arrays)) == (1 + len(asked)) * once > 0


def test_a_batch_split_over_devices_stays_split():
    """Each device transforms its own images; what they tell each other is the kernel's gradient alone."""
    x, kernel = normal(0, 16, 9, 6, 4), normal(1, 3, 3, 4, 5)
    split = jax.device_put(x, NamedSharding(Mesh(jax.devices(), "data"), PartitionSpec("data")))

    def both(x, kernel):
        y, back = jax.vjp(winograd_3x3, x, kernel)
        return y, *back(jnp.tanh(y))

    program = jax.jit(both).lower(split, kernel).compile()
    exchanged = re.findall(r" (all-\w+|collective-\w+|reduce-scatter)(?:-start)?\(", program.as_text())
    assert exchanged == ["all-reduce"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), program(split, kernel), both(x, kernel))


@pytest.mark.parametrize("backend", ["cpu", "tpu"])
def test_in_a_loop_every_convolution_has_the_order_of_axes_that_the_cpu_is_fast_in(monkeypatch, backend):
    """XLA turns the others outside of loops only; their own loops take many times as long (jax issue 12868)."""
    network = unet((8, 8, 3), channels=8, channel_mults=(1, 2), num_blocks=1, attention_resolutions=())
    params = random_params(network, scale=0.02)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)

    def train(params, x):
        def step(params, _):
            grads = jax.grad(lambda p: jnp.square(network.apply(p, x, jnp.ones(2), cond={})).sum())(params)
            return jax.tree.map(jnp.add, params, grads), None

        return lax.scan(step, params, None, length=2)[0]

    program = jax.jit(train).lower(params, jnp.ones((2, 8, 8, 3))).compile().as_text()
    orders = set(re.findall(r" convolution\(.*?dim_labels=(\w+->\w+)", program))
    assert (orders == {"b01f_01io->b01f"}) == (backend == "cpu")


@pytest.mark.parametrize("size", [(8, 8), (5, 3), (1, 1), (9, 14)])
def test_winograd_equals_the_direct_convolution(size):
    x, g = normal(0, 2, *size, 48), normal(1, 2, *size, 32)
    kernel = normal(2, 3, 3, 48, 32) / 20
    for got, expected in zip(
        value_and_gradients(winograd_3x3, g, x, kernel), value_and_gradients(plain, g, x, kernel), strict=True
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
    monkeypatch.setattr(convolution, "winograd_3x3", lambda *args: called.append(1) or winograd_3x3(*args))
    outputs = []
    for backend in ("cpu", "tpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        del called[:]
        outputs.append(jax.jit(lambda p, x: network.apply(p, x, jnp.ones(2), cond={}))(params, x))
        assert bool(called) == (backend == "cpu")
    assert relative_error(*outputs) < 3e-5
