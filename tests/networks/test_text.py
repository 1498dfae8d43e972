"""The text encoder and cross-attention: padding and neighbours never matter, and no caption is a caption of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.data import captions
from diffusion.data.captions import encode
from diffusion.networks.blocks import CrossAttention, Style
from diffusion.networks.layers import GroupNorm
from diffusion.networks.text import VOCABULARY, Text, text_encoder
from tests.networks.test_networks import noisy

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
    np.testing.assert_allclose(empty.features[0, 0], empty.pooled[0])
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
