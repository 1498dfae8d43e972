"""What guides learn, against numbers computed one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import objectives, parameterization
from diffusion.gaussian import diffuse
from diffusion.keys import stream
from diffusion.levels import uniform
from diffusion.losses import LOG_SNR_BINS, guide_loss
from diffusion.schedules import linear_beta

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
SCHEDULE = linear_beta()


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_classification_is_cross_entropy_and_its_likelihood_that_of_the_class():
    logits, label = RNG.normal(size=(6, 4)), np.array([0, 3, 1, 2, 2, 0])
    loss, right = objectives.classification().compare(jnp.float32(logits), {"label": label})
    expected = log_softmax(logits)[np.arange(6), label]
    np.testing.assert_allclose(loss, -expected, rtol=1e-5)
    np.testing.assert_array_equal(right, logits.argmax(1) == label)
    likelihood = objectives.classification().log_likelihood(jnp.float32(logits), {"label": label})
    np.testing.assert_allclose(likelihood, expected, rtol=1e-5)


def test_equal_captions_share_the_target_of_the_contrastive_loss():
    image, text = RNG.normal(size=(4, 5)), RNG.normal(size=(4, 5))
    text[2] = text[0]
    scale, tokens = np.array([1.0, 2.0, 0.5, 3.0]), np.array([[1, 2], [3, 0], [1, 2], [4, 4]])
    logits = scale[:, None] * (image @ text.T)
    rows, columns = log_softmax(logits), log_softmax(logits.T)
    expected = []
    for i in range(4):
        equal = [j for j in range(4) if (tokens[j] == tokens[i]).all()]
        expected.append(-(np.mean([rows[i, j] for j in equal]) + np.mean([columns[i, j] for j in equal])) / 2)
    output = tuple(jnp.float32(part) for part in (image, text, scale))
    loss, right = objectives.contrastive().compare(output, {"text": tokens})
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    first = logits.argmax(1)
    np.testing.assert_array_equal(right, [(tokens[first[i]] == tokens[i]).all() for i in range(4)])
    likelihood = objectives.contrastive().log_likelihood(output, {"text": tokens})
    np.testing.assert_allclose(likelihood, scale * (image * text).sum(1), rtol=1e-5)


def test_captions_of_one_class_say_the_same():
    parts = [jnp.float32(RNG.normal(size=(4, 5))) for _ in range(2)]
    output, tokens = (*parts, jnp.ones(4)), np.array([[1], [2], [3], [4]])
    by_label, _ = objectives.contrastive().compare(output, {"text": tokens, "label": np.array([7, 5, 7, 6])})
    by_text, _ = objectives.contrastive().compare(output, {"text": np.array([[1], [2], [1], [4]])})
    np.testing.assert_allclose(by_label, by_text, rtol=1e-6)
    alone, _ = objectives.contrastive().compare(output, {"text": tokens})
    assert np.abs(alone - by_text).max() > 0.1


def readers(x):
    """Logits of three classes that a pixel's sign decides."""
    return jnp.stack([x[:, 0, 0, 0], -x[:, 0, 0, 0], jnp.zeros(len(x))], axis=1)


def test_a_guide_is_trained_on_noised_images_of_all_levels_and_counts_what_it_reads():
    told = []

    def apply(params, x, noise_cond, *, cond, key=None):
        told.append((noise_cond, key))
        return params * readers(x)

    batch = {"image": jax.random.normal(KEY, (256, 2, 2, 1)), "label": jnp.arange(256) % 3}
    objective, param = objectives.classification(), parameterization.eps()
    options = {"levels": uniform(SCHEDULE), "param": param, "objective": objective}
    loss, metrics = guide_loss(apply, **options)(jnp.float32(2.0), batch, KEY)
    level = uniform(SCHEDULE)(stream(KEY, "levels"), 256)
    x_t = diffuse(batch["image"], jax.random.normal(stream(KEY, "noise"), (256, 2, 2, 1)), level)
    logits = np.float64(2 * readers(x_t))
    np.testing.assert_allclose(loss, -log_softmax(logits)[np.arange(256), batch["label"]].mean(), rtol=1e-5)
    right = logits.argmax(1) == batch["label"]
    assert metrics["bin_accuracy"].sum() == pytest.approx(right.sum())
    bins = np.digitize(level.log_snr, LOG_SNR_BINS)
    assert len(set(bins)) > 3
    np.testing.assert_allclose(metrics["bin_accuracy"], np.bincount(bins, right, minlength=5))
    np.testing.assert_array_equal(told[0][0], param.cond(level))
    assert told[0][1] is not None
    guide_loss(apply, dropout=False, **options)(jnp.float32(2.0), batch, KEY)
    assert told[1][1] is None, "a test has no dropout"


def test_a_guides_likelihood_is_its_output_at_the_scaled_sample():
    param = parameterization.edm()
    level = SCHEDULE.level(jnp.array([10, 500]))
    x_t, cond = jax.random.normal(KEY, (2, 2, 2, 1)), {"label": np.array([1, 0])}

    def apply(params, x, noise_cond, *, cond, key=None):
        return params * readers(x)

    objective = objectives.classification()
    got = objectives.log_likelihood(objective, apply, jnp.float32(1.5), cond, param=param)(x_t, level)
    scaled = np.asarray(param.coefs(level)[0])[:, None, None, None] * np.asarray(x_t)
    expected = log_softmax(np.float64(1.5 * readers(scaled)))[np.arange(2), cond["label"]]
    np.testing.assert_allclose(got, expected, rtol=1e-5)
