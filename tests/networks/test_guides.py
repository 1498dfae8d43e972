"""The networks of guides: a classifier, and an encoder pair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.networks.classifier import classifier
from diffusion.networks.clip import clip
from diffusion.networks.network import Inputs
from tests.laws import random_params

TINY = {"channels": 8, "channel_mults": (1, 2), "num_blocks": 1, "attention_resolutions": (4,)}
TEXT = {"text_channels": 8, "text_blocks": 1, "text_heads": 1, "width": 6}
X = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
CAPTIONS = jnp.array([[5, 6, 0], [5, 0, 0], [7, 6, 5], [5, 6, 0]])


def made(name):
    if name == "classifier":
        network, cond = classifier((8, 8, 3), **TINY, inputs=Inputs(num_classes=5)), {}
    else:
        network, cond = clip((8, 8, 3), **TINY, **TEXT, inputs=Inputs(caption_length=3)), {"text": CAPTIONS}
    params = random_params(network, scale=0.2)
    apply = jax.jit(lambda x, level, cond: network.apply(params, x, level, cond=cond))
    return apply, cond


@pytest.mark.parametrize("name", ["classifier", "clip"])
def test_rows_do_not_see_each_other_and_hear_the_level(name):
    apply, cond = made(name)
    out = jnp.column_stack(jax.tree.leaves(apply(X, jnp.array([1.0, 10, 100, 1000]), cond)))
    alone = apply(X[2:3], jnp.array([100.0]), {k: v[2:3] for k, v in cond.items()})
    np.testing.assert_allclose(out[2:3], jnp.column_stack(jax.tree.leaves(alone)), rtol=1e-4, atol=1e-4)
    other = jnp.column_stack(jax.tree.leaves(apply(X, jnp.full(4, 500.0), cond)))
    assert np.abs(other - out).max(1).min() > 1e-3


def test_the_encoder_pair_gives_unit_vectors_and_a_bounded_scale():
    apply, cond = made("clip")
    image, text, scale = apply(X, jnp.full(4, 10.0), cond)
    np.testing.assert_allclose(np.linalg.norm(image, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(text, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(text[0], text[3], rtol=1e-5)
    assert np.abs(text[0] - text[1]).max() > 1e-2
    assert (scale > 0).all()
    assert (scale <= 100).all()
    changed = {"text": CAPTIONS[::-1]}
    np.testing.assert_allclose(apply(X, jnp.full(4, 10.0), changed)[0], image, rtol=1e-5, atol=1e-6)


def test_a_data_set_that_has_nothing_to_read_is_refused():
    with pytest.raises(ValueError, match="two classes or more, this one has 0"):
        classifier((8, 8, 3), **TINY)
    with pytest.raises(ValueError, match="needs a data set with captions"):
        clip((8, 8, 3), **TINY, **TEXT)
