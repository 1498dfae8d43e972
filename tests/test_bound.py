"""The bound's terms against closed forms: Gaussian data, for which every expectation is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import bound, gaussian, parameterization, sampling, schedules
from diffusion.types import Prediction, float32
from tests import laws

STD = 0.5
ENTROPY = 0.5 * np.log(2 * np.pi * np.e * STD**2)  # of N(0, STD^2), nats per dimension
TERM = jax.jit(bound.term, static_argnames=("variance", "num_values"))
CHAINS = {
    "linear": sampling.all_steps(schedules.linear_beta()),
    "cosine": sampling.all_steps(schedules.cosine_alpha_bar()),
    "respaced": sampling.strided(schedules.linear_beta(), 20),
    "path": sampling.strided(schedules.vp_linear(), 50),
    "ve": sampling.all_steps(schedules.ve_ladder(50, 0.01, 50.0)),
}


def exact(x_t, level):
    """The exact prediction for data ~ N(0, STD^2), with its variance."""
    prediction = laws.gaussian_denoiser(0.0, STD)(x_t, level)
    return prediction._replace(log_var_x_0=jnp.zeros_like(x_t) + jnp.log(conditional_variance(level)).reshape(-1, 1))


def conditional_variance(level):
    """Var[x_0 | x_t]."""
    return STD**2 * level.sigma**2 / (level.alpha**2 * STD**2 + level.sigma**2)


def all_terms(steps, variance, num_values=0):
    """Every step's expected term, [n]: the corners have the second moments of x_0 ~ N(0, STD^2) and eps ~ N(0, 1)."""
    x_0 = np.float32([[STD], [-STD], [STD], [-STD]])
    eps = np.float32([[1.0], [1.0], [-1.0], [-1.0]])
    small = float32(bound.log_small(steps))

    def one(step, small):
        rows = jax.tree.map(lambda c: jnp.broadcast_to(c, 4), step)
        x_t = gaussian.diffuse(x_0, eps, rows.now)
        given = {"variance": variance, "num_values": num_values}
        return bound.term(exact(x_t, rows.now), x_0, rows, jnp.broadcast_to(small, 4), **given).mean()

    return np.asarray(jax.jit(jax.vmap(one))(float32(steps), small), np.float64)


def expected_terms(steps, variance):
    """The same in float64, from the moments: KL for all steps but the last, then -log density."""
    k = -np.expm1(-steps.h)
    left = conditional_variance(steps.now) * (steps.to.alpha * k) ** 2
    small, large = steps.to.sigma**2 * k, steps.now.sigma**2 * k
    floor = np.append(small[:-1], small[-2])
    of_model = {"small": floor, "large": np.append(large[:-1], floor[-1]), "learned": small + left}[variance]
    kl = 0.5 * (np.log(of_model / floor) + (floor + left) / of_model - 1)
    surprise = 0.5 * (np.log(2 * np.pi * of_model) + left / of_model)
    return np.append(kl[:-1], surprise[-1])


def mismatch(level):
    """(L_T for data of variance STD^2, the KL of x_T's true distribution to the prior), float64."""
    total, true = level.alpha**2 + level.sigma**2, level.alpha**2 * STD**2 + level.sigma**2

    def kl(variance, mean_square=0.0):
        return 0.5 * (np.log(total / variance) + (variance + mean_square) / total - 1)

    return kl(level.sigma**2, level.alpha**2 * STD**2), kl(true)


@pytest.mark.parametrize("variance", gaussian.VARIANCES)
@pytest.mark.parametrize("name", CHAINS)
def test_the_bound_of_gaussian_data_is_the_exact_chains_kl(name, variance):
    steps = CHAINS[name]
    found, expected = all_terms(steps, variance), expected_terms(steps, variance)
    np.testing.assert_allclose(found[:-1].sum(), expected[:-1].sum(), rtol=1e-5)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-9)
    np.testing.assert_allclose(found.sum(), expected.sum(), rtol=1e-5)


@pytest.mark.parametrize("name", CHAINS)
def test_the_bound_is_never_below_the_entropy_and_tight_with_the_exact_variance(name):
    steps = CHAINS[name]
    first = laws.rows_of(steps.now, 0)
    L_T, missed = mismatch(first)
    got = jax.jit(bound.prior)(np.float32([[STD], [-STD]]), float32(first))
    np.testing.assert_allclose(got, L_T, rtol=2e-5, atol=1e-9)
    total = {variance: L_T + all_terms(steps, variance).sum() for variance in gaussian.VARIANCES}
    np.testing.assert_allclose(total["learned"], ENTROPY + missed, rtol=1e-5, atol=1e-6)
    assert total["large"] > ENTROPY
    assert total["small"] > ENTROPY


def test_a_perfect_prediction_costs_nothing_with_the_small_variance():
    steps = CHAINS["respaced"]
    x_0, step = np.float32([[0.5, -1.0]]), float32(laws.rows_of(steps, slice(3, 4)))
    small = float32(bound.log_small(steps)[3:4])
    perfect = Prediction(x_0, np.ones_like(x_0))
    assert TERM(perfect, x_0, step, small, variance="small", num_values=256) == 0


def test_the_ends_of_a_learned_range_are_the_two_fixed_variances():
    steps = CHAINS["linear"]
    step, small = float32(laws.rows_of(steps, slice(0, None, 99))), float32(bound.log_small(steps)[::99])
    x_0 = np.linspace(-1, 1, 2 * len(small), dtype=np.float32).reshape(-1, 2)
    for place, variance in ((0.0, "small"), (1.0, "large")):
        prediction = Prediction(x_0 / 2, x_0, var_frac=np.full_like(x_0, place))
        learned, fixed = (
            TERM(prediction, x_0, step, small, variance=which, num_values=256) for which in ("learned", variance)
        )
        np.testing.assert_allclose(learned, fixed, rtol=1e-6)


def test_a_variance_that_was_not_learned_is_refused():
    prediction = Prediction(jnp.zeros((1, 2)), jnp.zeros((1, 2)))
    step = float32(laws.rows_of(CHAINS["linear"], slice(0, 1)))
    with pytest.raises(ValueError, match=r"parameterization\.variance=range"):
        gaussian.reverse_log_variance(prediction, step, "learned")


def test_the_clean_steps_small_variance_is_the_one_befores():
    tables = laws.ddpm_tables(laws.linear_betas())
    small = bound.log_small(CHAINS["linear"])
    np.testing.assert_allclose(small[:-1], np.log(tables.posterior_variance[:1:-1]), rtol=1e-9)
    assert small[-1] == small[-2]
    one = sampling.strided(schedules.linear_beta(), 1)
    np.testing.assert_allclose(bound.log_small(one), 2 * np.log(one.now.sigma))


def test_the_mean_over_the_chain_is_the_sum_of_its_terms():
    schedule = schedules.cosine_alpha_bar(30)
    steps = sampling.all_steps(schedule)
    rng = np.random.default_rng(0)
    x_0 = jnp.asarray(rng.choice(np.linspace(-1, 1, 17), (30, 3)), jnp.float32)
    level = float32(schedule.level(np.arange(30, 0, -1)))
    eps = rng.normal(size=(30, 3)).astype(np.float32)
    x_t = np.asarray(gaussian.diffuse(np.asarray(x_0), eps, schedule.level(np.arange(30, 0, -1))), np.float32)
    prediction = Prediction(0.3 * x_t, eps, var_frac=np.tanh(x_t))
    at = jax.jit(bound.of_chain(schedule, variance="learned", num_values=17))
    small = float32(bound.log_small(steps))
    each = TERM(prediction, x_0, float32(steps), small, variance="learned", num_values=17)
    np.testing.assert_allclose(at(prediction, x_0, level).mean(), each.sum() / np.log(2), rtol=1e-5)


@pytest.mark.parametrize("num_values", [0, 17])
@pytest.mark.parametrize("variance", parameterization.LEARNED)
@pytest.mark.parametrize(
    "schedule",
    [
        schedules.linear_beta(2, 0.1, 0.9),
        schedules.linear_beta(1, 0.3, 0.3),
        schedules.cosine_alpha_bar(40),
        schedules.linear_beta(),
        schedules.ve_ladder(50, 0.01, 50.0),
    ],
    ids=["two", "one", "cosine", "linear", "ve"],
)
def test_whatever_the_network_says_values_and_gradients_are_finite(schedule, variance, num_values):
    """For each step of the chain, the first, the last and those between, and outputs V from -200 to 200."""
    param = dataclasses.replace(parameterization.v(), variance=variance)
    t = np.unique(np.linspace(1, schedule.num_steps, min(schedule.num_steps, 8)).astype(int))
    level = schedule.level(np.repeat(t, 11))
    x_0 = np.full((len(level.t), 2), 0.25, np.float32)
    x_t = np.asarray(gaussian.diffuse(x_0, 0.3 * np.ones_like(x_0), level), np.float32)
    level = float32(level)
    at = bound.of_chain(schedule, variance="learned", num_values=num_values)

    def terms(F, V):
        return at(param.predict(jnp.concatenate([F, V], -1), x_t, level), x_0, level)

    F, V = np.zeros_like(x_0), np.tile(np.linspace(-200, 200, 11, dtype=np.float32), len(t))[:, None].repeat(2, 1)
    value, gradients = jax.jit(lambda *given: (terms(*given), jax.grad(lambda *g: terms(*g).sum(), (0, 1))(*given)))(
        F, V
    )
    assert np.isfinite(value).all()
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert np.abs(gradients[0]).max() > 0
    assert np.abs(gradients[1]).max() > 0


def test_a_variance_far_too_large_costs_half_a_nat_for_each_e_fold():
    """KL(N(0, v) || N(0, s^2)) -> log(s^2 / v) / 2 - 1 / 2, wherever s^2 alone would overflow."""
    step = float32(laws.rows_of(CHAINS["linear"], slice(500, 501)))
    small = float32(bound.log_small(CHAINS["linear"])[500:501])
    x_0, now = np.float32([[0.5, -1.0]]), step.now
    k, V = -np.expm1(-step.h), 150.0
    told = np.full_like(x_0, V)
    cost = lambda told: TERM(
        Prediction(x_0, x_0, log_var_x_0=told), x_0, step, small, variance="learned", num_values=17
    ).sum()
    expected = (V + 2 * np.log(np.asarray(step.to.alpha) * k) - np.asarray(small) - 1) / 2
    assert now.sigma > 0
    np.testing.assert_allclose(cost(told), expected[0], rtol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.grad(cost))(told).sum(), 0.5, rtol=1e-6)


def test_the_prior_takes_a_level_for_each_sample():
    x_0 = np.float32([[0.5, -1.0, 0.1], [0.2, 0.3, 0.4]])
    levels = float32(schedules.linear_beta(50).level(np.array([50, 20])))
    prior = jax.jit(bound.prior)
    alone = [prior(x_0[i : i + 1], jax.tree.map(lambda c, i=i: np.asarray(c)[i], levels))[0] for i in range(2)]
    np.testing.assert_allclose(prior(x_0, levels), np.stack(alone), rtol=1e-6)
    for i, found in enumerate(alone):
        alpha, sigma = float(levels.alpha[i]), float(levels.sigma[i])
        exact = 0.5 * (sigma**2 - 1 - 2 * np.log(sigma) + alpha**2 * np.square(x_0[i]).mean())
        assert float(found) == pytest.approx(exact, rel=1e-4)
