import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from configs import ddpm_cifar10
from diffusion import build, devices
from diffusion.build import Facts
from diffusion.commands.train import traced
from diffusion.training import costs
from diffusion.training import state as states
from diffusion.training.feed import Feed

FORWARD_32 = 11.67e9
"""Of the published DDPM U-Net for one 32x32 image, as XLA counts it, the work between the products included."""


def counted(function, *shapes):
    return costs.flops(jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)))


class TestFlops:
    def test_of_products(self):
        assert counted(jnp.matmul, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
        assert counted(lambda a, b: jnp.einsum("bij,bkj->bik", a, b), (4, 3, 5), (4, 7, 5)) == 4 * 2 * 3 * 5 * 7

    @pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 3), (0, 1))])
    @pytest.mark.parametrize(
        ("options", "groups"),
        [
            ({}, 1),
            ({"window_strides": (2, 3)}, 1),
            ({"rhs_dilation": (2, 1)}, 1),
            ({"lhs_dilation": (1, 2)}, 1),
            ({"feature_group_count": 2}, 2),
        ],
    )
    def test_a_convolution_of_ones_counts_its_own_products(self, padding, options, groups):
        """Each output of ones with ones is the number of products that went into it."""
        if "lhs_dilation" in options and isinstance(padding, str):
            padding = ((1, 1), (1, 1))
        image, kernel = (2, 9, 8, 4), (3, 2, 4 // groups, 6)
        options = {
            "window_strides": (1, 1),
            "padding": padding,
            "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
        } | options

        def convolve(x, k):
            return jax.lax.conv_general_dilated(x, k, **options)

        products = float(convolve(jnp.ones(image), jnp.ones(kernel)).sum())
        assert counted(convolve, image, kernel) == 2 * products

    @pytest.mark.parametrize("options", [{}, {"window_strides": (2, 2)}, {"feature_group_count": 2}])
    def test_each_gradient_of_a_convolution_takes_as_many(self, options):
        groups = options.get("feature_group_count", 1)
        options = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC")} | options

        def convolve(x, k):
            return jax.lax.conv_general_dilated(x, k, **options)

        def gradients(x, k, out):
            return jax.vjp(convolve, x, k)[1](out)

        image, kernel = (2, 8, 8, 4), (3, 3, 4 // groups, 6)
        out = jax.eval_shape(convolve, jnp.ones(image), jnp.ones(kernel)).shape
        forward = counted(convolve, image, kernel)
        assert counted(gradients, image, kernel, out) == 3 * forward  # the forward pass is in that program too

    def test_a_scan_counts_each_turn_and_a_cond_its_costliest_branch(self):
        def turns(x):
            return jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=10)[0]

        def branches(x):
            return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x @ x @ x, x)

        assert counted(turns, (4, 4)) == 10 * 2 * 4**3
        assert counted(branches, (4, 4)) == 2 * 2 * 4**3

    def test_what_devices_do_each_for_themselves_is_summed(self):
        mesh = devices.data_mesh()
        rows = PartitionSpec("data")
        each = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=rows, out_specs=rows)
        assert counted(each, (2 * mesh.size, 5)) == mesh.size * 2 * 2 * 5 * 2

    def test_rematerialised_products_count_again(self):
        def loss(w, x):
            return jnp.sin(jnp.sin(x @ w) @ w).sum()

        shapes = ((4, 4), (4, 4))
        plain, again = counted(jax.grad(loss), *shapes), counted(jax.grad(jax.checkpoint(loss)), *shapes)
        assert again - plain == counted(loss, *shapes) == 2 * 2 * 4**3

    @pytest.mark.slow
    def test_the_published_unet(self):
        """Nothing is compiled: training takes three times the forward pass, less the gradient of the image itself."""
        config = ddpm_cifar10.get_config()
        config.training.batch_size, config.network.dtype = 8, "bfloat16"
        run = build.build(config, Facts((32, 32, 3), 256, (), 50_000))
        mesh = devices.data_mesh()
        target = states.abstract(run.new_state, mesh)
        image, level = jnp.zeros((1, 32, 32, 3)), jnp.zeros(1)
        forward = jax.make_jaxpr(lambda p: run.network.apply(p, image, level, cond={}))(target.params)
        assert costs.flops(forward) == pytest.approx(FORWARD_32, rel=0.01)
        rows = grain.MapDataset.source([{"image": np.zeros((8, 32, 32, 3), np.float32)}])
        step = traced(run, mesh, target, Feed(rows=rows), jax.random.key(0))
        assert costs.flops(step.jaxpr) / 8 == pytest.approx(3 * FORWARD_32, rel=0.01)


class TestMemory:
    def test_a_donated_argument_is_counted_once(self):
        x = jax.ShapeDtypeStruct((1024,), jnp.float32)
        for donated in ((), (0,)):
            memory = costs.memory(jax.jit(lambda x: x + 1, donate_argnums=donated).lower(x).compile())
            assert memory.arguments == 4096
            assert memory.results == (0 if donated else 4096)
            assert memory.peak == sum(memory)

    def test_the_line_meets_its_point_and_finds_the_largest_batch(self):
        line = costs.line(peak=100 + 10 + 64 * 5, state=100, params=5, batch_size=64, num_devices=2, limit=300)
        assert line.fixed + 64 * line.slope == 430
        assert line.fixed + line.largest_batch() * line.slope <= 300
        assert line.fixed + 2 * line.largest_batch() * line.slope > 300
        assert line.largest_batch() == 32
        assert line.fewest_devices(64) == 4  # 110 + 64 * 5 * 2 / 4 = 270; with 2 it is 430
        assert line._replace(limit=112).largest_batch() == 0
        assert line._replace(limit=110).fewest_devices(64) is None
