"""Text in networks: padding and neighbours never matter, no caption is one of its own, a new network ignores all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.data import captions
from diffusion.data.captions import encode
from diffusion.networks.blocks import CrossAttention, Style
from diffusion.networks.layers import GroupNorm
from diffusion.networks.network import Inputs
from diffusion.networks.text import VOCABULARY, Text, text_encoder
from diffusion.networks.unet import unet
from tests.laws import noisy, random_params
from tests.networks.test_networks import SMALL, compiled, size

CAPTIONS = ["a handwritten three", "", "żółw", "three"]
ENCODER = text_encoder(8, 2, 2, 48, jnp.dtype("float32"))
NEW = jax.jit(ENCODER.init)(jax.random.key(0), jnp.zeros((1, 48), jnp.int32))["params"]
PARAMS = noisy(NEW)
APPLY = jax.jit(lambda params, tokens: ENCODER.apply({"params": params}, tokens))


def encoded(texts=CAPTIONS, length=24):
    return APPLY(PARAMS, jnp.asarray(encode(texts, length)))


def test_the_vocabulary_is_that_of_the_data():
    assert VOCABULARY == captions.VOCABULARY


def test_more_padding_changes_nothing():
    short, long = encoded(length=24), encoded(length=48)
    np.testing.assert_allclose(long.pooled, short.pooled, atol=1e-6)
    np.testing.assert_allclose(long.features[:, :24], short.features, atol=1e-6)
    assert not long.features[:, 24:].any()
    np.testing.assert_array_equal(long.mask.sum(1), [19, 1, 7, 5])


def test_what_stands_behind_the_end_changes_nothing():
    tokens = jnp.asarray(encode(CAPTIONS, 24))
    rubbish = jnp.where((jnp.arange(24) > 19)[None], 77, tokens)
    for field, changed in zip(encoded(), APPLY(PARAMS, rubbish), strict=True):
        np.testing.assert_allclose(changed, field, atol=1e-6)


def test_a_caption_does_not_see_its_neighbours():
    together = encoded()
    for i, caption in enumerate(CAPTIONS):
        for field, alone in zip(together, encoded([caption]), strict=True):
            np.testing.assert_allclose(field[i : i + 1], alone, atol=1e-6)


def test_every_byte_counts_and_so_does_its_place():
    pooled = encoded(["three", "threa", "ehret", "there", "thre", ""]).pooled
    distances = jnp.abs(pooled[:, None] - pooled[None]).max(-1)
    assert distances[~np.eye(6, dtype=bool)].min() > 1e-2
    features = encoded(["three", "threa"]).features
    assert jnp.abs(features[0, :4] - features[1, :4]).max() > 1e-3, "tokens see each other"


def test_no_caption_is_finite_learned_and_unlike_any_other():
    empty = encoded([""])
    assert jnp.isfinite(empty.pooled).all()
    np.testing.assert_allclose(empty.features[0, 0], empty.pooled[0], rtol=1e-5)
    assert jnp.abs(empty.pooled - encoded(["\x00"]).pooled).max() > 1e-2
    grad = jax.grad(lambda params: APPLY(params, jnp.asarray(encode([""], 24))).pooled[0, 0])(PARAMS)
    rows = jnp.abs(grad["bytes"]["embedding"]).max(1)
    assert rows[0] > 0
    assert not rows[1:].any()


def test_the_pooled_vector_is_the_mean_of_the_features():
    text = encoded()
    for i, length in enumerate([19, 1, 7, 5]):
        np.testing.assert_allclose(text.pooled[i], text.features[i, :length].mean(0), atol=1e-6)


def test_a_new_encoder_is_its_embeddings_normed():
    tokens = encode(["ab"], 24)
    x = np.asarray(NEW["bytes"]["embedding"])[tokens[0, :2]] + np.asarray(NEW["places"]["embedding"])[:2]
    expected = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
    features = APPLY(NEW, jnp.asarray(tokens)).features
    np.testing.assert_allclose(features[0, :2], expected, atol=1e-5)


def test_bfloat16_computes_near_float32():
    apply = jax.jit(text_encoder(8, 2, 2, 48, jnp.dtype("bfloat16")).apply)
    half = apply({"params": PARAMS}, jnp.asarray(encode(CAPTIONS, 24)))
    assert half.pooled.dtype == half.features.dtype == jnp.bfloat16
    expected = encoded().pooled
    assert 0 < jnp.abs(half.pooled.astype(jnp.float32) - expected).max() < 0.05 * jnp.abs(expected).max()


@pytest.mark.parametrize("options", [(8, 2, 3), (0, 2, 1), (8, 0, 2), (8, 2, 0)])
def test_errors(options):
    with pytest.raises(ValueError, match="a number of heads that divides the channels"):
        text_encoder(*options, 48, jnp.dtype("float32"))


def test_too_long_captions_are_refused():
    with pytest.raises(ValueError, match="got captions of 49 tokens, expected at most 48"):
        encoded(length=49)


def test_cross_attention_reads_the_text_with_the_images_questions():
    """Against a float64 recomputation; two heads of 4 channels, captions of 3 and 1 tokens."""
    x = jax.random.normal(jax.random.key(0), (2, 3, 2, 8))
    features = jax.random.normal(jax.random.key(1), (2, 4, 5))
    text = Text(features, jnp.array([[True, True, True, False], [True, False, False, False]]), features[:, 0])
    attention = CrossAttention(Style(jnp.float32, num_heads=2))
    params = noisy(jax.jit(attention.init)(jax.random.key(2), x, text)["params"])
    y = GroupNorm(jnp.float32).apply({"params": params["GroupNorm_0"]}, x).reshape(2, 6, 8)

    def dense(name, y):
        kernel, bias = (np.asarray(params[name]["Dense_0"][k], np.float64) for k in ("kernel", "bias"))
        return np.asarray(y, np.float64) @ kernel + bias

    expected = np.array(x, np.float64)
    for row, length in enumerate([3, 1]):
        q, k, v = dense("q", y[row]), *(dense(name, features[row, :length]) for name in "kv")
        heads = []
        for part in (slice(0, 4), slice(4, 8)):
            weights = np.exp(q[:, part] @ k[:, part].T / 2)
            heads.append(weights / weights.sum(1, keepdims=True) @ v[:, part])
        expected[row] += dense("out", np.concatenate(heads, axis=1)).reshape(3, 2, 8)
    np.testing.assert_allclose(jax.jit(attention.apply)({"params": params}, x, text), expected, rtol=1e-4, atol=1e-5)


def test_new_cross_attention_passes_on_its_input():
    x, text = jax.random.normal(jax.random.key(0), (4, 2, 2, 8)), encoded()
    np.testing.assert_array_equal(
        jax.jit(CrossAttention(Style(jnp.float32)).init_with_output)(jax.random.key(1), x, text)[0], x
    )


TEXT = {"text_conditional": True, "text_channels": 8, "text_blocks": 1, "text_heads": 2}


def reading(length=24, shape=(8, 8, 3), **options):
    """A small U-Net that reads captions."""
    return compiled(unet(shape, **SMALL["unet"] | TEXT | options, inputs=Inputs(caption_length=length)))


def rows(*texts, length=24):
    return {"text": jnp.asarray(encode(texts, length))}


def is_text(path):
    names = [entry.key for entry in path]
    return "text" in names or any(name.startswith(("text_encoder", "CrossAttention")) for name in names)


READING = reading()
X = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))


def test_a_new_network_ignores_its_text_and_has_the_other_parameters_of_one_without():
    plain = compiled(unet((8, 8, 3), **SMALL["unet"]))
    other = random_params(plain)
    new = READING.init(jax.random.key(0))

    def from_plain(path, leaf):
        if is_text(path):
            return leaf
        found = other
        for entry in path:
            found = found[entry.key]
        return found

    params = jax.tree_util.tree_map_with_path(from_plain, new)
    told = READING.apply(params, X, 10, cond=rows("a cat", "a dog"))
    np.testing.assert_allclose(told, plain.apply(other, X, 10, cond={}), atol=1e-5)
    assert jnp.abs(told).max() > 0.1
    kept = [leaf.size for path, leaf in jax.tree.leaves_with_path(new) if not is_text(path)]
    assert sum(kept) == size(plain)


def test_each_sample_reads_its_own_caption_to_its_end():
    params = random_params(READING)
    out = READING.apply(params, X, 10, cond=rows("a cat", "a dog"))
    other = READING.apply(params, X, 10, cond=rows("a cat", "a dot"))
    np.testing.assert_allclose(other[0], out[0], rtol=1e-5, atol=1e-5)
    assert jnp.abs(other[1] - out[1]).max() > 1e-3
    empty = READING.apply(params, X, 10, cond=rows("a cat", ""))
    assert jnp.isfinite(empty).all()
    assert jnp.abs(empty[1] - out[1]).max() > 1e-3
    places = params["text_encoder"]["places"]["embedding"]
    params["text_encoder"]["places"]["embedding"] = jnp.concatenate([places, places])
    longer = reading(length=48).apply(params, X, 10, cond=rows("a cat", "a dog", length=48))
    np.testing.assert_allclose(longer, out, rtol=1e-5, atol=1e-5)


def test_the_text_is_heard_through_the_level_and_through_the_pixels():
    """With one of the two ways closed, the other is left."""
    for closed in ("text", "CrossAttention"):
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf, closed=closed: (
                leaf * 0 if any(e.key.startswith(closed) and e.key != "text_encoder" for e in path) else leaf
            ),
            random_params(READING),
        )
        out = READING.apply(params, X, 10, cond=rows("a cat", "a dog"))
        assert jnp.abs(out - READING.apply(params, X, 10, cond=rows("a cow", "a hen"))).max() > 1e-3


@pytest.mark.slow
def test_gradients_reach_every_parameter_of_the_text():
    grads = jax.grad(lambda params: jnp.square(READING.apply(params, X, 10, cond=rows("a cat", ""))).mean())(
        random_params(READING)
    )
    for path, grad in jax.tree.leaves_with_path(grads):
        key_bias = path[-1].key == "bias" and any(e.key == "k" for e in path)  # softmax does not see it
        assert key_bias or not is_text(path) or jnp.abs(grad).max() > 0, jax.tree_util.keystr(path)


def test_cross_attention_follows_every_self_attention():
    for resolutions, once, count in [((), "every", 1), ((4,), "every", 1 + 1 + 2), ((4, 8), "last", 1 + 2 + 2)]:
        network = reading(attention_resolutions=resolutions, up_attention=once)
        params = jax.eval_shape(network.init, jax.random.key(0))
        assert sum(name.startswith("CrossAttention") for name in params) == count
        assert sum(name.startswith("SelfAttention") for name in params) == count


def test_captions_are_needed():
    with pytest.raises(ValueError, match="needs a data set with captions"):
        reading(length=0)
    with pytest.raises(ValueError, match="conditioned on 'text', but cond has \\[\\]"):
        READING.apply(random_params(READING), X, 1, cond={})
    with pytest.raises(ValueError, match="text_heads=3; expected"):
        reading(text_heads=3)
