"""Text end to end: captions of a data set, prompts, the loss and guidance of one run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import build
from diffusion.config import config
from diffusion.data.captioned_digits import CAPTION_LENGTH, WORDS
from diffusion.data.captions import decode
from tests.laws import random_params

NETWORK = {
    "name": "unet",
    "channels": 8,
    "channel_mults": (1,),
    "num_blocks": 1,
    "attention_resolutions": (),
    "text_conditional": True,
    "text_channels": 8,
    "text_blocks": 1,
    "text_heads": 2,
}


def text_run(scale=1.0):
    return build.build(
        config(
            data={"name": "captioned_digits"},
            network=NETWORK,
            loss={"cond_dropout": 0.3},
            guidance={"scale": scale},
            sampler={"name": "ddim", "threshold": "none"},
            training={"num_steps": 10, "batch_size": 16},
        )
    )


@pytest.fixture(scope="module")
def run():
    return text_run()


@pytest.fixture(scope="module")
def params(run):
    return random_params(run.network)


def test_samples_are_asked_for_by_captions(run):
    asked = [f"a handwritten {word}" for word in WORDS] + ["the digit zero", "the digit one"]
    assert decode(run.cond(12)["text"]) == asked
    assert decode(run.cond(3, prompts=["a seven", ""])["text"]) == ["a seven", "", "a seven"]
    with pytest.raises(ValueError, match=f"has 33 bytes of UTF-8, but captions here have at most {CAPTION_LENGTH}"):
        run.cond(1, prompts=["7" * 33])
    with pytest.raises(ValueError, match="got cond with 'label', which this run does not read"):
        run.cond(1, labels=[7])


def test_the_loss_teaches_the_text_encoder_and_listens_to_it(run, params):
    batch = {name: jnp.asarray(rows) for name, rows in run.batches()[0].items()}
    loss = jax.jit(jax.value_and_grad(lambda params, batch: run.loss(params, batch, jax.random.key(1))[0]))
    value, grads = loss(params, batch)
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads["text_encoder"]))
    other, _ = loss(params, batch | {"text": batch["text"][::-1]})
    assert abs(value - other) > 1e-4
    without, silent = loss(params, batch | {"text": jnp.zeros_like(batch["text"])})
    assert abs(value - without) > 1e-4
    bytes_heard = jnp.abs(silent["text_encoder"]["bytes"]["embedding"]).max(1) > 0
    np.testing.assert_array_equal(bytes_heard, np.arange(257) == 0)


def test_guidance_moves_away_from_no_caption(run, params):
    x_t = jax.random.normal(jax.random.key(2), (2, 8, 8, 1))
    level = run.schedule.level(jnp.asarray(500))

    def x_0(run, *prompts):
        return jax.jit(lambda params, cond: run.denoiser(params, cond)(x_t, level).x_0)(
            params, run.cond(2, None, prompts)
        )

    told, empty = x_0(run, "the digit 3", "seven"), x_0(run, "")
    assert jnp.abs(told - empty).max(axis=(1, 2, 3)).min() > 1e-2
    guided = x_0(text_run(scale=3.0), "the digit 3", "seven")
    np.testing.assert_allclose(guided, empty + 3 * (told - empty), rtol=1e-4, atol=1e-4)
