"""Laws that every network keeps, and the U-Net's published size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.ve_cifar10 import NCSN_PLUS_PLUS
from diffusion import lookup, networks
from diffusion.networks import resample
from diffusion.networks.blocks import Block, SelfAttention, Style
from diffusion.networks.layers import GroupNorm
from diffusion.networks.network import Inputs, Network
from diffusion.networks.unet import unet
from tests.laws import noisy, random_params

SMALL = {
    "unet": {"channels": 8, "channel_mults": (1, 2), "num_blocks": 1, "attention_resolutions": (4,)},
    "dit": {"channels": 16, "num_blocks": 2, "num_heads": 2},
    "mlp": {},
}
NETWORKS = lookup.components(networks, Network)
ADM = {"scale_shift": True, "head_channels": 4, "resample": "block"}
VARIANTS = {
    "unet of ADM": ("unet", ADM),
    "unet of NCSN++": ("unet", {**NCSN_PLUS_PLUS, "num_blocks": 1, "fourier_scale": 0.1}),
}
"""Networks that grew out of others, small too, on which the same laws run."""


def size(network):
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(network.init, jax.random.key(0))))


def compiled(network):
    """The network with its functions jitted, which is much faster to test than one operation at a time."""
    init = jax.jit(network.init, compiler_options={"xla_backend_optimization_level": 0})
    return Network(init, jax.jit(network.apply))


def small(name, **options):
    base, variant = VARIANTS.get(name, (name, {}))
    given = {"shape": (8, 8, 3)} | SMALL[base] | variant | options
    given.pop("name", None)
    return compiled(NETWORKS[base](**given))


def test_the_cifar10_unet_has_ddpms_number_of_parameters():
    assert size(unet((32, 32, 3))) == 35_746_307


@pytest.mark.parametrize(
    ("channels", "published"),
    [
        (64, 30e6),
        pytest.param(96, 68e6, marks=pytest.mark.slow),
        pytest.param(128, 120e6, marks=pytest.mark.slow),
        (192, 270e6),
    ],
    ids=lambda n: f"{n:.0f}",
)
def test_iddpms_unets_have_the_published_numbers_of_parameters(channels, published):
    """Nichol & Dhariwal 2021, section 6, on ImageNet 64, rounded there."""
    network = unet(
        (64, 64, 3),
        channels=channels,
        channel_mults=(1, 2, 3, 4),
        num_blocks=3,
        attention_resolutions=(16, 8),
        num_heads=4,
        scale_shift=True,
    )
    assert size(network) == pytest.approx(published, rel=0.015)


@pytest.mark.parametrize(
    ("size_", "channels", "mults", "num_blocks", "published"),
    [
        (64, 192, (1, 2, 3, 4), 3, 296e6),
        pytest.param(128, 256, (1, 1, 2, 3, 4), 2, 422e6, marks=pytest.mark.slow),
        (256, 256, (1, 1, 2, 2, 4, 4), 2, 554e6),
    ],
)
def test_adms_unets_have_the_published_numbers_of_parameters(size_, channels, mults, num_blocks, published):
    """Dhariwal & Nichol 2021, table 11, class-conditional ImageNet, in millions."""
    network = unet(
        (size_, size_, 3),
        channels=channels,
        channel_mults=mults,
        num_blocks=num_blocks,
        attention_resolutions=(32, 16, 8),
        class_conditional=True,
        inputs=Inputs(num_classes=1000),
        **ADM | {"head_channels": 64},
    )
    assert size(network) == pytest.approx(published, abs=0.5e6)


def test_a_head_attends_within_its_own_channels():
    """Against a float64 recomputation; two heads of 4 channels."""
    x = jax.random.normal(jax.random.key(0), (2, 3, 2, 8))
    attention = SelfAttention(Style(jnp.float32, num_heads=2))
    params = noisy(attention.init(jax.random.key(1), x)["params"])
    y = GroupNorm(jnp.float32).apply({"params": params["GroupNorm_0"]}, x).reshape(2, 6, 8)

    def dense(name, y):
        kernel, bias = (np.asarray(params[name]["Dense_0"][k], np.float64) for k in ("kernel", "bias"))
        return y @ kernel + bias

    q, k, v = (dense(name, np.asarray(y, np.float64)) for name in "qkv")
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        weights = np.exp(np.einsum("bqc,bkc->bqk", q[..., part], k[..., part]) / 2)
        heads.append(np.einsum("bqk,bkc->bqc", weights / weights.sum(-1, keepdims=True), v[..., part]))
    expected = np.asarray(x) + dense("out", np.concatenate(heads, axis=-1)).reshape(x.shape)
    np.testing.assert_allclose(attention.apply({"params": params}, x), expected, rtol=1e-4, atol=1e-5)


def test_scale_and_shift_replace_the_norms_own():
    """With a scale of -1 nothing of the normalised input is left: the block adds a constant of the level alone."""
    block = Block(8, Style(jnp.float32, scale_shift=True))
    x, emb = jax.random.normal(jax.random.key(0), (2, 4, 4, 8)), jnp.ones((2, 5))
    params = noisy(block.init(jax.random.key(1), x, emb, False)["params"])
    told = params["Dense_0"]["Dense_0"]
    told["kernel"], told["bias"] = jnp.zeros((5, 16)), jnp.append(-jnp.ones(8), jnp.linspace(-1, 1, 8))
    added = block.apply({"params": params}, x, emb, False) - x
    np.testing.assert_allclose(added[:, 1:-1, 1:-1], jnp.broadcast_to(added[:1, 1:2, 1:2], (2, 2, 2, 8)), atol=1e-5)
    assert jnp.abs(added).max() > 0.1


def test_a_new_block_and_attention_pass_on_their_input_resampled_and_rescaled():
    x, emb, taps = jax.random.normal(jax.random.key(0), (2, 4, 6, 8)), jnp.ones((2, 5)), (1.0, 3.0, 3.0, 1.0)
    style = Style(jnp.float32, skip_rescale=True, resample_filter=taps)
    for resize, moved in {None: x, "down": resample.down(x, taps), "up": resample.up(x, taps)}.items():
        block = Block(8, style, resize)
        params = block.init(jax.random.key(1), x, emb, False)
        np.testing.assert_allclose(block.apply(params, x, emb, False), moved / np.sqrt(2), atol=1e-6)
    attention = SelfAttention(style)
    np.testing.assert_allclose(attention.init_with_output(jax.random.key(1), x)[0], x / np.sqrt(2), atol=1e-6)


def test_heads_are_counted_or_as_wide_as_asked():
    assert Style(jnp.float32, num_heads=4).heads(24) == 4
    assert Style(jnp.float32, head_channels=4).heads(24) == 6


SLOWLY = [pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS]


@pytest.mark.parametrize("name", [*NETWORKS, *SLOWLY])
class TestEveryNetwork:
    def test_starts_at_zero_in_float32(self, name):
        network = small(name)
        params = network.init(jax.random.key(0))
        x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
        np.testing.assert_array_equal(network.apply(params, x, jnp.array([1, 1000]), cond={}), jnp.zeros_like(x))
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}

    def test_dropout_follows_its_key_and_none_means_none(self, name):
        network = small(name, dropout=0.5)
        params, x = random_params(network), jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
        out = [
            network.apply(params, x, 5, cond={}, key=key)
            for key in (jax.random.key(2), jax.random.key(2), jax.random.key(3))
        ]
        np.testing.assert_array_equal(out[0], out[1])
        assert jnp.abs(out[0] - out[2]).max() > 0.01
        plain = small(name, dropout=0.0).apply(params, x, 5, cond={})
        np.testing.assert_array_equal(network.apply(params, x, 5, cond={}), plain)

    def test_samples_do_not_see_each_other(self, name):
        network = small(name)
        params, x = random_params(network), jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
        t = jnp.array([1, 10, 100, 1000])
        whole = network.apply(params, x, t, cond={})
        alone = network.apply(params, x[2:3], t[2:3], cond={})
        np.testing.assert_allclose(whole[2:3], alone, rtol=1e-4, atol=1e-4)

    def test_the_level_the_label_and_the_estimate_reach_the_output(self, name):
        network = small(name, class_conditional=True, inputs=Inputs(num_classes=3, self_conditioning=True))
        params, x = random_params(network), jax.random.normal(jax.random.key(1), (1, 8, 8, 3))
        cond = {"label": jnp.array([0]), "x_0_hat": jnp.zeros_like(x)}
        base = network.apply(params, x, 10, cond=cond)
        for t, change in [(900, {}), (10, {"label": jnp.array([2])}), (10, {"x_0_hat": jnp.ones_like(x)})]:
            assert jnp.abs(network.apply(params, x, t, cond=cond | change) - base).max() > 1e-3

    def test_the_augmentation_label_is_heard_through_nine_weights_a_channel_and_a_label_of_zero_is_not(self, name):
        told, plain = (small(name, channels=8, inputs=Inputs(augment_label=label)) for label in (True, False))
        params, x = random_params(told), jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
        out = told.apply(params, x, 10, cond={"augment_label": jnp.zeros((2, 9))})
        for i in range(9):
            changed = told.apply(params, x, 10, cond={"augment_label": jnp.eye(9)[jnp.array([i, i])]})
            assert jnp.abs(changed - out).max() > 1e-3
        level = params["level" if "level" in params else "LevelEmbedding_0"]
        assert size(told) - size(plain) == 9 * level["Dense_0"]["Dense_0"]["kernel"].shape[0]
        del level["augment"]  # the other parameters have the names that they have without it
        assert jax.tree.structure(params) == jax.tree.structure(jax.eval_shape(plain.init, jax.random.key(0)))
        np.testing.assert_allclose(plain.apply(params, x, 10, cond={}), out, rtol=1e-6, atol=1e-6)

    def test_the_null_label_is_one_more_row_of_the_labels_embedding(self, name):
        told, plain = (
            small(name, class_conditional=True, inputs=Inputs(num_classes=3, dropped=null)) for null in (True, False)
        )
        shapes = [
            jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(n.init, jax.random.key(0))) for n in (told, plain)
        ]
        for params in shapes:
            embedding = params["level" if "level" in params else "LevelEmbedding_0"].pop("Embed_0")["embedding"]
            assert embedding[0] == (4 if params is shapes[0] else 3)
        assert shapes[0] == shapes[1]

    def test_a_missing_input_is_named(self, name):
        network = small(name, class_conditional=True, inputs=Inputs(num_classes=3))
        with pytest.raises(ValueError, match="conditioned on 'label', but cond has \\[\\]"):
            network.apply(random_params(network), jnp.zeros((1, 8, 8, 3)), 1, cond={})
        with pytest.raises(ValueError, match="needs a data set with labels"):
            small(name, class_conditional=True)


@pytest.mark.parametrize(("shape", "block"), [((8, 12, 1), "resnet"), ((16, 4, 5), "separable")])
def test_the_unet_takes_any_channels_and_shapes_that_its_levels_allow(shape, block):
    network = compiled(unet(shape, **SMALL["unet"] | {"channel_mults": (1, 2, 3), "block": block}))
    params, x = random_params(network), jax.random.normal(jax.random.key(1), (2, *shape))
    moved = network.apply(params, x.at[0, 0, 0, 0].add(1.0), 7, cond={}) - network.apply(params, x, 7, cond={})
    assert moved.shape == x.shape
    assert (jnp.abs(moved[0]).max(axis=(0, 1)) > 0).all(), "every output channel sees the input"
    assert not moved[1].any()


def test_separable_blocks_are_light():
    """A 3x3 convolution of c channels has 9 c^2 weights, its depthwise-separable twin 9 c + c^2."""

    def kernels(block):
        params = jax.eval_shape(unet((8, 8, 3), **SMALL["unet"], block=block).init, jax.random.key(0))
        return sum(
            k.size for path, k in jax.tree.leaves_with_path(params["Block_0"]) if "Conv" in str(path) and k.ndim == 4
        )

    assert (kernels("resnet"), kernels("separable")) == (2 * 9 * 8**2, 2 * (9 * 8 + 8**2))


def test_attention_stands_where_it_is_asked_for():
    def attentions(resolutions):
        network = unet((16, 8, 1), **SMALL["unet"] | {"attention_resolutions": resolutions})
        return str(jax.eval_shape(network.init, jax.random.key(0))).count("'q'")

    assert attentions(()) == 1, "the middle always has one"
    assert attentions((8,)) == 1 + 1 + 2, "the longer side counts: 16x8 is halved to 8x4"
    assert attentions((8, 16)) == 1 + 2 + 4


@pytest.mark.parametrize("name", ["unet", *SLOWLY])
def test_bfloat16_computes_near_float32_and_returns_float32(name):
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    full, half = small(name), small(name, dtype="bfloat16")
    params = random_params(full)
    out = half.apply(params, x, 5, cond={})
    assert out.dtype == jnp.float32
    expected = full.apply(params, x, 5, cond={})
    assert 0 < jnp.abs(out - expected).max() < 0.05 * jnp.abs(expected).max()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shape": (30, 32, 3)}, "multiples of 8, such as 24x32 or 32x40"),
        ({"shape": (2,)}, "use network.name=mlp"),
        ({"dropout": 1.0}, "probability"),
        ({"num_blocks": 0}, "num_blocks >= 1"),
        ({"block": "dense"}, "expected one of: resnet, separable"),
        ({"dtype": "float16"}, "expected one of: float32, bfloat16"),
        ({"resample": "fir"}, "expected one of: conv, block, projected_block"),
        ({"up_attention": "first"}, "expected one of: every, last"),
        ({"num_heads": 3}, "heads that divide the width of each level with attention, of which one is 256"),
        ({"head_channels": 48}, "heads that divide the width"),
        ({"head_channels": 0}, "heads that divide the width"),
        ({"num_heads": 4, "head_channels": 64}, "give one of them"),
        ({"resample_filter": (1.0, 2.0, 1.0)}, "an even number of symmetric taps"),
        ({"resample_filter": (1.0, 3.0, 3.0, 1.0)}, "has no filter"),
        ({"progressive_input": True, "channel_mults": (1,)}, "needs at least two levels"),
        ({"fourier_scale": 0.0}, "got fourier_scale=0.0"),
    ],
)
def test_errors(options, words):
    with pytest.raises(ValueError, match=words):
        unet(**{"shape": (32, 32, 3)} | options)


def test_an_nnx_network_fits_the_fence():
    """Nothing outside networks/ knows Linen: a network of another library needs these lines and no more."""

    class Points(nnx.Module):
        def __init__(self, rngs):
            self.hidden, self.out = nnx.Linear(3, 16, rngs=rngs), nnx.Linear(16, 2, rngs=rngs)

        def __call__(self, x, t):
            return self.out(nnx.swish(self.hidden(jnp.concatenate([x, t[:, None]], axis=1))))

    graph = nnx.split(Points(nnx.Rngs(0)))[0]

    def apply(params, x, noise_cond, *, cond, key=None):
        return nnx.merge(graph, params)(x, jnp.broadcast_to(jnp.asarray(noise_cond, x.dtype), x.shape[:1]))

    network = Network(lambda key: nnx.split(Points(nnx.Rngs(key)))[1], apply)
    params = network.init(jax.random.key(0))
    x = jnp.ones((5, 2))
    h = jnp.concatenate([x, jnp.full((5, 1), 3.0)], axis=1) @ params["hidden"]["kernel"][...]
    expected = nnx.swish(h) @ params["out"]["kernel"][...]
    np.testing.assert_allclose(network.apply(params, x, 3, cond={}), expected, rtol=1e-5)
