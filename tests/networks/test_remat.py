"""What is computed again is the same, and less is remembered."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.networks.dit import dit
from diffusion.networks.network import Inputs
from diffusion.networks.unet import unet
from diffusion.training.costs import flops

WAYS = {
    "unet": lambda remat: unet(
        (8, 8, 1),
        channels=8,
        channel_mults=(1, 2),
        num_blocks=1,
        attention_resolutions=(4,),
        resample="block",
        dropout=0.5,
        remat=remat,
    ),
    "unet with text": lambda remat: unet(
        (4, 4, 1),
        channels=8,
        channel_mults=(1,),
        num_blocks=1,
        attention_resolutions=(),
        text_conditional=True,
        text_channels=8,
        text_blocks=1,
        text_heads=1,
        inputs=Inputs(caption_length=3),
        remat=remat,
    ),
    "dit": lambda remat: dit((8, 8, 1), channels=16, num_blocks=3, num_heads=2, dropout=0.5, remat=remat),
}
X = jnp.asarray(np.random.default_rng(0).normal(size=(16, 8, 8, 1)).astype(np.float32))


@functools.cache
def compiled(name, remat):
    """(parameters nowhere zero, the gradient of a loss with dropout)."""
    network = WAYS[name](remat)
    side = 4 if "text" in name else 8
    cond = {"text": jnp.ones((16, 3), jnp.int32)} if "text" in name else {}
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    random = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: 0.2 * random.normal(size=leaf.shape).astype(np.float32), shapes)

    def loss(params):
        return (network.apply(params, X[:, :side, :side], 0.5, cond=cond, key=jax.random.key(2)) ** 2).mean()

    return params, jax.jit(jax.value_and_grad(loss)).lower(params).compile()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) for name in WAYS if name != "dit"] + ["dit"]
)
@pytest.mark.parametrize("remat", ["elementwise", "block"])
def test_loss_gradient_and_names_are_those_without(name, remat):
    params, plain = compiled(name, "none")
    again, less = compiled(name, remat)
    assert jax.tree.structure(params) == jax.tree.structure(again)
    for expected, found in zip(jax.tree.leaves(plain(params)), jax.tree.leaves(less(params)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_a_whole_block_remembers_less_than_its_products_and_those_less_than_everything():
    residuals = [remembered(kind) for kind in ("block", "elementwise", "none")]
    assert residuals[0] < 0.8 * residuals[1] < 0.8**2 * residuals[2]


@pytest.mark.parametrize("channels", [8, 64])  # direct convolutions, Winograd's
def test_elementwise_computes_no_product_again(channels):
    def products(remat):
        network = unet((8, 8, 1), channels, (1, 2), num_blocks=1, attention_resolutions=(), remat=remat)
        params = jax.eval_shape(network.init, jax.random.key(0))
        return flops(jax.make_jaxpr(jax.grad(lambda p: network.apply(p, X, 0.5, cond={}).sum()))(params))

    assert products("none") == products("elementwise") < products("block")


def remembered(remat):
    """Numbers that the way back needs of the way there."""
    network = WAYS["dit"](remat)
    params = jax.eval_shape(network.init, jax.random.key(0))
    forward = lambda params: network.apply(params, X, 0.5, cond={}, key=jax.random.key(2)).sum()
    _, backward = jax.eval_shape(lambda p: jax.vjp(forward, p), params)
    return sum(leaf.size for leaf in jax.tree.leaves(backward))


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match="got remat='all', expected one of: none, elementwise, block"):
        unet((8, 8, 1), remat="all")
