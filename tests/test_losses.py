import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import levels, losses, parameterization, weights
from diffusion.gaussian import diffuse
from diffusion.keys import stream
from diffusion.losses import LOG_SNR_BINS, denoising_loss
from diffusion.schedules import linear_beta
from diffusion.types import expand

SCHEDULE = linear_beta()
OPTIONS = {"levels": levels.uniform(SCHEDULE), "param": parameterization.eps(), "weight": weights.constant()}
BATCH = {"image": jax.random.uniform(jax.random.key(7), (64, 4, 4, 1), minval=-1, maxval=1)}
KEY = jax.random.key(1)


def zero(params, x, noise_cond, *, cond, key):
    return jnp.zeros_like(x)


def noise_and_level():
    return jax.random.normal(stream(KEY, "noise"), BATCH["image"].shape), OPTIONS["levels"](stream(KEY, "levels"), 64)


@pytest.mark.parametrize(
    ("norm", "rho"),
    [("l2", np.square), ("l1", np.abs), ("huber", lambda r: np.where(np.abs(r) < 1, r * r / 2, np.abs(r) - 0.5))],
)
def test_a_network_of_zeros_pays_the_norm_of_the_noise(norm, rho):
    eps, _ = noise_and_level()
    loss, _ = denoising_loss(zero, norm=norm, **OPTIONS)(None, BATCH, KEY)
    assert loss == pytest.approx(rho(np.asarray(eps, np.float64)).mean(), rel=1e-6)


def test_the_network_sees_x_t_and_t_and_a_perfect_one_pays_nothing():
    eps, level = noise_and_level()

    def perfect(params, x, noise_cond, *, cond, key):
        np.testing.assert_allclose(x, diffuse(BATCH["image"], eps, level), rtol=1e-6)
        np.testing.assert_array_equal(noise_cond, level.t)
        return (x - expand(level.alpha, x) * BATCH["image"]) / expand(level.sigma, x)

    assert denoising_loss(perfect, **OPTIONS)(None, BATCH, KEY)[0] < 1e-9


def test_the_weight_multiplies_each_sample():
    eps, level = noise_and_level()
    options = OPTIONS | {"weight": weights.min_snr()}
    loss, _ = denoising_loss(zero, **options)(None, BATCH, KEY)
    weight = np.minimum(1, 5 / np.exp(np.asarray(level.log_snr, np.float64)))
    assert loss == pytest.approx((weight * np.square(eps).mean((1, 2, 3))).mean(), rel=1e-5)


def test_bins_add_up_to_the_loss_and_hold_the_right_samples():
    _, level = noise_and_level()
    loss, metrics = denoising_loss(zero, **OPTIONS)(None, BATCH, KEY)
    assert metrics["bin_loss"].sum() / 64 == pytest.approx(float(loss), rel=1e-6)
    edges = np.array([-np.inf, *LOG_SNR_BINS, np.inf])
    np.testing.assert_array_equal(metrics["bin_count"], np.histogram(level.log_snr, edges)[0])


def test_bins_undo_the_preference_of_adaptive_levels():
    """Every bin counts as many samples, and as much loss, as with uniform levels."""
    sampler = levels.loss_second_moment(SCHEDULE, history=1)
    t, n = np.arange(SCHEDULE.num_steps), 4096
    memory = sampler.update(sampler.init(), t, (1.0 + t / 100).astype(np.float32))
    batch = {"image": jnp.zeros((n, 1))}
    loss, metrics = denoising_loss(zero, **OPTIONS | {"levels": sampler})(None, batch, KEY, memory)
    assert metrics["bin_loss"].sum() / n == pytest.approx(float(loss), rel=1e-5)
    edges = np.array([-np.inf, *LOG_SNR_BINS, np.inf])
    uniform = np.histogram(SCHEDULE.level(t + 1).log_snr, edges)[0] / SCHEDULE.num_steps
    np.testing.assert_allclose(metrics["bin_count"] / n, uniform, atol=10 / np.sqrt(n) * np.sqrt(uniform.max()))


def test_cond_is_what_else_the_batch_holds():
    seen = []

    def network(params, x, noise_cond, *, cond, key):
        seen.append(cond)
        return x

    denoising_loss(network, **OPTIONS)(None, BATCH | {"label": jnp.arange(64)}, KEY)
    assert [set(cond) for cond in seen] == [{"label"}], "one call, and no self-conditioning input when it is off"


def test_self_conditioning_feeds_back_the_first_estimate_to_half_of_the_samples_without_gradient():
    calls = []

    def network(scale, x, noise_cond, *, cond, key):
        calls.append(cond["x_0_hat"])
        return scale * x

    def loss(scale):
        return denoising_loss(network, self_conditioning=True, **OPTIONS)(scale, BATCH, KEY)[0]

    loss(jnp.float32(0.3))
    first, second = calls
    assert not first.any()
    eps, level = noise_and_level()
    x_t = diffuse(BATCH["image"], eps, level)
    estimate = parameterization.eps().predict(0.3 * x_t, x_t, level).x_0
    fed = np.asarray((second != 0).any(axis=(1, 2, 3)))
    assert 20 <= fed.sum() <= 44, "a coin for each of 64 samples"
    np.testing.assert_allclose(second[fed], np.clip(estimate[fed], -1, 1), rtol=1e-5, atol=1e-5)
    assert np.abs(estimate).max() > 1, "the test would not see a missing clip"

    def through_estimate(scale):
        return denoising_loss(fed_back_only(), self_conditioning=True, **OPTIONS)(scale, BATCH, KEY)[0]

    gradient = jax.grad(through_estimate)(0.3)
    assert gradient == 0


def fed_back_only():
    """A network whose output depends on its parameter only through the estimate that is fed back."""
    outputs = iter([True, False])

    def network(params, x, noise_cond, *, cond, key):
        return params * x if next(outputs) else cond["x_0_hat"]

    return network


def test_an_unknown_norm_lists_the_right_ones():
    with pytest.raises(ValueError, match="loss.norm is 'l3', which is not known. .*Known: huber, l1, l2"):
        losses.check_norm("l3")


def test_conditions_are_dropped_together_by_a_coin_for_each_sample():
    label = jnp.arange(20_000) % 10
    text = jnp.stack([label + 1, label + 2], axis=1)
    batch = {"image": jnp.zeros((20_000, 1)), "label": label, "text": text}
    got = losses.drop_cond(batch, KEY, 0.1, {"label": 10, "text": 0})
    dropped = got["label"]
    null = np.asarray(dropped) == 10
    assert null.mean() == pytest.approx(0.1, abs=4 * np.sqrt(0.09 / 20_000))
    assert np.bincount(label[null], minlength=10).min() > 120, "of every class"
    np.testing.assert_array_equal(dropped[~null], label[~null])
    np.testing.assert_array_equal(got["text"], np.where(null[:, None], 0, text))
    np.testing.assert_array_equal(got["image"], batch["image"])
    coins = jax.random.bernoulli(stream(KEY, "cond dropout"), 0.1, (20_000,))
    np.testing.assert_array_equal(null, coins)


@pytest.mark.parametrize(
    ("p", "conditional", "words"),
    [
        (1.0, True, r"cond_dropout is 1.0, expected a probability in \[0, 1\)"),
        (0.1, False, "network.class_conditional=True"),
    ],
)
def test_wrong_cond_dropout_is_named(p, conditional, words):
    with pytest.raises(ValueError, match=words):
        losses.check_cond_dropout(p, conditional)
