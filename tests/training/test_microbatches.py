"""k micro-batches of b rows are one batch of k b: parameters, averages, memory, metrics and random numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import build
from diffusion.config import config
from diffusion.losses import Loss
from diffusion.training import optim
from diffusion.training.state import new_state
from diffusion.training.step import gradient, make_train_step
from tests.laws import noisy

KEY = jax.random.key(3)
MLP = {"name": "mlp", "channels": 8, "num_blocks": 1}
CHAIN = {"name": "linear_beta_scaled", "num_steps": 25}
UNET = {"channels": 8, "channel_mults": (1, 2), "num_blocks": 1, "attention_resolutions": ()}
KINDS = {
    "simple": {
        "network": MLP | {"class_conditional": True},
        "levels": {"name": "stratified"},
        "data": {"name": "digits", "augment": 0.5},
        "loss": {"self_conditioning": True, "cond_dropout": 0.5, "norm": "huber"},
    },
    "hybrid": {
        "levels": {"name": "loss_second_moment", "history": 1},
        "parameterization": {"name": "eps", "variance": "range"},
        "loss": {"vlb_weight": 0.1},
    },
    "vlb": {"levels": {"name": "antithetic"}, "loss": {"name": "vlb"}},
    "learned": {
        "schedule": {"name": "learned_log_snr", "log_snr_max": 8.0, "hidden": 16},
        "loss": {"name": "vlb"},
        "grid": {"name": "strided", "num_steps": 8},
    },
    "guide": {"network": {"name": "classifier", **UNET}, "loss": {"name": "classification"}},
}
"""Every loss, and between them every way in which a batch is drawn."""


def run_of(kind):
    base = {"network": MLP, "schedule": CHAIN, "training": {"num_steps": 4, "batch_size": 16}}
    return build.build(config(**base | KINDS[kind]))


def assert_close(got, wanted):
    """Leaf by leaf to the rounding of float32, of the leaf's largest value."""
    for path, leaf in jax.tree.leaves_with_path(wanted):
        other = dict(jax.tree.leaves_with_path(got))[path]
        atol = 2e-6 * float(np.abs(leaf).max()) + 1e-8
        np.testing.assert_allclose(other, leaf, rtol=2e-5, atol=atol, err_msg=jax.tree_util.keystr(path))


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("vlb", "guide")]


@pytest.mark.parametrize("kind", ["simple", "hybrid", "learned", *SLOW])
def test_the_gradient_the_metrics_and_the_memory_of_every_loss_are_those_of_the_whole_batch(kind):
    run = run_of(kind)
    state = run.new_state(jax.random.key(0))
    params, batch, memory = noisy(state.params), run.batches()[0], state.memory
    if memory is not None:  # one that prefers some levels
        memory = memory._replace(losses=jnp.arange(1.0, 26)[:, None], count=memory.count + 1)
    whole, parts = (
        jax.jit(lambda *given, k=k: gradient(run.loss, *given, KEY, memory=memory, microbatches=k))(params, batch)
        for k in (1, 4)
    )
    assert jax.tree.structure(parts) == jax.tree.structure(whole)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(whole[0]))
    assert_close(parts, whole)


def test_updates_and_averages_are_those_of_the_whole_batch():
    def draw(batch, key, memory):
        return batch + jax.random.normal(key, batch.shape)

    loss = Loss(draw, lambda w, rows, key: (jnp.square(w[None] * rows - 1).sum(1), {}), lambda *given: {})
    optimizer, outcomes = optim.adam(0.1, clip_norm=1.0), []
    for k in (1, 8):
        step = jax.jit(make_train_step(loss, optimizer, {"0.9": 0.9}, microbatches=k))
        state = new_state(jnp.array([0.5, -2.0]), optimizer, ["0.9"])
        for i in range(3):
            state, _ = step(state, jnp.linspace(0, i + 1, 32).reshape(16, 2), KEY)
        outcomes.append(state)
    assert outcomes[1].step == 3
    assert_close(outcomes[1], outcomes[0])
    assert np.abs(outcomes[0].ema["0.9"] - np.array([0.5, -2.0])).min() > 0.01


def masks(k, n=4096):
    """(dropout masks [n, 8], the rows that they were drawn for) of a batch of n rows."""

    def per_sample(params, rows, key):
        kept = jax.random.bernoulli(key, 0.25, (len(rows), 8)).astype(jnp.float32)
        return params * kept.mean(1), {"kept": kept, "row": rows}

    loss = Loss(lambda batch, key, memory: batch, per_sample, lambda params, rows, values, memory: values)
    _, metrics = gradient(loss, jnp.float32(1.0), jnp.arange(n), KEY, microbatches=k)
    np.testing.assert_array_equal(metrics["row"], np.arange(n))
    return np.asarray(metrics["kept"])


def test_dropout_has_the_same_distribution_independent_in_every_row_and_not_the_same_masks():
    whole, parts = masks(1), masks(4)
    np.testing.assert_array_equal(whole, jax.random.bernoulli(KEY, 0.25, (4096, 8)))
    error = 5 * np.sqrt(0.25 * 0.75 / 4096)
    for found in (whole, parts):
        np.testing.assert_allclose(found.mean(0), 0.25, atol=error)
        together = (found[0::4, :, None] * found[1::4, None, :]).mean(0)  # rows of two micro-batches
        np.testing.assert_allclose(together, 0.0625, atol=5 * np.sqrt(0.0625 * 0.9375 / 1024))
    assert np.mean(whole != parts) == pytest.approx(2 * 0.25 * 0.75, abs=0.02)


def test_an_average_of_gradients_loses_nothing_in_float32():
    """A thousand parts that are summed in float32 are as good as their mean in float64."""
    values = np.random.default_rng(0).uniform(1, 2, 1024).astype(np.float32)
    loss = Loss(lambda batch, key, memory: batch, lambda w, rows, key: (w * rows, {}), lambda *given: {})
    found, _ = gradient(loss, jnp.float32(0.0), values, KEY, microbatches=1024)
    assert float(found) == pytest.approx(values.astype(np.float64).mean(), rel=1e-6)
