"""A network as a guided denoiser: one evaluation on both branches, each row with its own label."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import guidance, keys, parameterization
from diffusion.denoiser import network_denoiser
from diffusion.gaussian import diffuse
from diffusion.guidance import Guidance
from diffusion.networks.network import Inputs, Network
from diffusion.sampling import ddim, strided
from diffusion.sampling.loop import sample
from diffusion.schedules import linear_beta
from diffusion.types import SelfConditioned

NULL = 3
SAYS = np.array([0.1, -0.3, 0.5, 0.2], np.float32)
"""The stub's x_0 for each label, the null label last."""
LABELS = jnp.array([2, 0, NULL, 1])
X = jax.random.normal(jax.random.key(0), (4, 2))
LEVEL = linear_beta().level(jnp.asarray(300))
GUIDED = SAYS[NULL] + 3 * (SAYS[LABELS] - SAYS[NULL])


def stub(calls):
    """A network that returns what SAYS says of its labels, and half of its last estimate; it notes its batch sizes."""

    def apply(params, x, noise_cond, *, cond, key=None):
        jax.debug.callback(lambda: calls.append(len(x)))
        if "augment_label" in cond:
            assert cond["augment_label"].shape == (len(x), 9)
            x = 0 * x + cond["augment_label"].sum()
        else:
            x = 0 * x
        return x + jnp.asarray(SAYS)[cond["label"]][:, None] + 0.5 * cond.get("x_0_hat", 0)

    return Network(lambda key: {}, apply)


def made(how, calls=None, threshold=None, **facts):
    inputs = Inputs(num_classes=NULL, dropped=True, **facts)
    network = stub([] if calls is None else calls)
    return network_denoiser(network, inputs, parameterization.x_0(), threshold=threshold or guidance.none(), how=how)


@pytest.mark.parametrize(
    ("how", "sizes", "expected"),
    [
        (Guidance(), [4], SAYS[LABELS]),
        (Guidance(3.0), [8], GUIDED),
        (Guidance(3.0, interval=(-1.0, 4.0)), [8], GUIDED),
        (Guidance(3.0, interval=(4.0, 9.0)), [4], SAYS[LABELS]),
        (Guidance(1.0, plus_plus=True), [8], SAYS[LABELS]),
    ],
)
@pytest.mark.parametrize("facts", [{}, {"augment_label": True}])
def test_one_evaluation_of_all_rows_guides_each_by_its_own_label(how, sizes, expected, facts):
    calls = []
    got = made(how, calls, **facts)({}, {"label": LABELS})(X, LEVEL)
    np.testing.assert_allclose(got.x_0, np.stack([expected, expected], 1), atol=1e-6)
    if not how.plus_plus:
        np.testing.assert_allclose(diffuse(got.x_0, got.eps, LEVEL), X, atol=1e-5)
    jax.effects_barrier()
    assert calls == sizes


def test_rows_may_have_levels_of_their_own():
    level = linear_beta().level(jnp.array([10, 300, 300, 900]))
    got = made(Guidance(3.0, interval=(-2.0, 2.0)))({}, {"label": LABELS})(X, level)
    inside = np.abs(level.log_snr) < 2
    assert inside.tolist() == [False, True, True, False]
    np.testing.assert_allclose(got.x_0[:, 0], np.where(inside, GUIDED, SAYS[LABELS]), atol=1e-6)
    np.testing.assert_allclose(diffuse(got.x_0, got.eps, level), X, atol=1e-5)


def test_guided_sampling_evaluates_once_a_step():
    steps, calls = strided(linear_beta(), 6), []
    ids = keys.per_sample(jax.random.key(0), jnp.arange(4))
    for how, rows in ((Guidance(3.0), 8), (Guidance(), 4)):
        calls.clear()
        x = sample(ddim(), made(how, calls)({}, {"label": LABELS}), X, steps, ids)
        expected = GUIDED if how.active else SAYS[LABELS]
        np.testing.assert_allclose(x[:, 0], expected, atol=1e-6)
        jax.effects_barrier()
        assert calls == [rows] * 6


def test_both_branches_are_fed_the_last_guided_estimate():
    denoise = made(Guidance(3.0), self_conditioning=True)({}, {"label": LABELS})
    assert isinstance(denoise, SelfConditioned)
    ids = keys.per_sample(jax.random.key(0), jnp.arange(4))
    x, estimate = sample(ddim(), denoise, X, strided(linear_beta(), 4), ids), 0.0
    for _ in range(4):
        estimate = GUIDED + 0.5 * np.clip(estimate, -1, 1)  # the fed-back half is in both branches alike
    np.testing.assert_allclose(x[:, 0], estimate, atol=1e-5)


def test_the_guided_estimate_is_thresholded():
    got = made(Guidance(3.0), threshold=guidance.clip(-0.5, 0.5))({}, {"label": LABELS})(X, LEVEL)
    assert np.abs(GUIDED).max() > 1
    np.testing.assert_allclose(got.x_0[:, 0], np.clip(GUIDED, -0.5, 0.5), atol=1e-6)
    np.testing.assert_allclose(diffuse(got.x_0, got.eps, LEVEL), X, atol=1e-5)


def test_cfg_plus_plus_thresholds_its_branches_and_keeps_the_unconditional_eps():
    """So a scale of 0 is unconditional sampling with the same threshold."""
    clip = guidance.clip(-0.15, 0.15)
    alone = made(Guidance(), threshold=clip)({}, {"label": jnp.full(4, NULL)})(X, LEVEL)
    for scale in (0.0, 0.6):
        got = made(Guidance(scale, plus_plus=True), threshold=clip)({}, {"label": LABELS})(X, LEVEL)
        np.testing.assert_allclose(got.eps, alone.eps, rtol=1e-6)
        clipped = np.clip(SAYS, -0.15, 0.15)
        expected = clipped[NULL] + scale * (clipped[LABELS] - clipped[NULL])
        np.testing.assert_allclose(got.x_0[:, 0], expected, atol=1e-6)
