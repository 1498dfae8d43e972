import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import bound, gaussian
from diffusion.data.scaling import to_unit_range
from diffusion.keys import per_sample
from diffusion.likelihood import variational
from diffusion.sampling import grids
from diffusion.schedules import cosine_alpha_bar, linear_beta_scaled
from diffusion.types import Prediction, expand, float32
from tests import laws
from tests.golden import variational_bound

SCHEDULES = {"linear": linear_beta_scaled(variational_bound.T), "cosine": cosine_alpha_bar(variational_bound.T)}


@pytest.fixture(scope="module")
def golden():
    with np.load(variational_bound.FILE) as file:
        return dict(file)


def golden_model(x_t, level):
    """The toy model of tests/golden/variational_bound.py as a denoiser, told the old chain's time."""
    share = expand(jnp.asarray(level.t, jnp.float32) / variational_bound.T, x_t)
    eps = jnp.tanh(0.8 * x_t) * (0.5 + 0.5 * share)
    return Prediction(gaussian.x_0_from_eps(x_t, eps, level), eps, 0.5 + 0.4 * jnp.sin(3 * x_t + share))


@pytest.mark.parametrize("n", [256, 17])
@pytest.mark.parametrize("chain", ["full", "respaced"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_term_is_that_of_an_independent_float64_computation(golden, schedule, chain, n):
    name, times = f"{schedule}.{chain}.{n}", golden[f"times.{chain}"]
    steps = grids.through(SCHEDULES[schedule], np.append(times, 0))
    columns = float32((steps, bound.log_small(steps)))
    x_0 = to_unit_range(golden[f"values.{n}"], n)
    terms = {"large": [], "small": [], "learned": []}

    @jax.jit
    def costs(step, log_small, eps):
        prediction = golden_model(gaussian.diffuse(x_0, eps, step.now), step.now)
        given = prediction, x_0, step, log_small
        nats = {variance: bound.term(*given, variance=variance, num_values=n) for variance in terms}
        return ((prediction.eps - eps) ** 2).mean((1, 2, 3)), nats

    for i, t in enumerate(times):
        mse, nats = costs(*jax.tree.map(lambda column, i=i: np.asarray(column)[i], columns), golden[f"eps.{n}"][t - 1])
        assert mse == pytest.approx(golden[f"{name}.mse"][i], rel=1e-5)
        for variance, rows in terms.items():
            rows.append(np.asarray(nats[variance], np.float64) / np.log(2))
    first = float32(SCHEDULES[schedule].level(times[0]))
    prior = np.asarray(jax.jit(bound.prior)(x_0, first), np.float64) / np.log(2)
    np.testing.assert_allclose(prior, golden[f"{schedule}.{n}.prior"], rtol=2e-6)
    for variance, rows in terms.items():
        np.testing.assert_allclose(rows, golden[f"{name}.{variance}"], rtol=4e-6, err_msg=variance)
        np.testing.assert_allclose(prior + sum(rows), golden[f"{name}.{variance}.total"], rtol=1e-6)


@pytest.mark.parametrize("chain", ["full", "respaced"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_bound_of_a_data_set_adds_up_the_same_terms(golden, schedule, chain, monkeypatch):
    """`vlb_bpd`, and its estimate from every step, with the noise of the file: step i's key is i itself."""
    name, times = f"{schedule}.{chain}.256", golden[f"times.{chain}"]
    last, noise = len(times) - 1, jnp.asarray(golden["eps.256"][times - 1])
    monkeypatch.setattr(variational, "each_at_step", lambda keys, i: i)
    monkeypatch.setattr(variational, "each_stream", lambda given, purpose: last if purpose == "last" else given)
    monkeypatch.setattr(variational, "normal", lambda i, shape: noise[i])
    x_0 = jnp.asarray(to_unit_range(golden["values.256"], 256))
    keys, steps = per_sample(jax.random.key(0), jnp.arange(3)), grids.through(SCHEDULES[schedule], np.append(times, 0))
    for variance, column in ((None, "learned"), ("large", "large")):
        found = variational.vlb_bpd(golden_model, x_0, steps, keys, num_values=256, variance=variance)
        expected = golden[f"{name}.{column}"]
        np.testing.assert_allclose(found.L_T, golden[f"{schedule}.256.prior"], rtol=2e-6)
        np.testing.assert_allclose(found.L_t, expected[:-1], rtol=4e-6)
        np.testing.assert_allclose(found.L_0, expected[-1], rtol=4e-6)
        np.testing.assert_allclose(found.mse, golden[f"{name}.mse"], rtol=1e-5)
        np.testing.assert_allclose(found.total, golden[f"{name}.{column}.total"], rtol=1e-6)
    found = variational.vlb_bpd_estimate(golden_model, x_0, steps, keys, num_values=256, num_terms=last)
    np.testing.assert_allclose(found.sum, golden[f"{name}.learned"][:-1].sum(0), rtol=2e-6)
    np.testing.assert_allclose(found.total, golden[f"{name}.learned.total"], rtol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rows_of_steps_are_the_same_terms(golden, schedule):
    """Fields [batch]: each image at a step of its own, the last one at the decoder's."""
    times = golden["times.full"]
    steps = grids.all_steps(SCHEDULES[schedule])
    rows = np.array([0, 20, variational_bound.T - 1])
    step, log_small = float32(laws.rows_of((steps, bound.log_small(steps)), rows))
    x_0 = jnp.asarray(to_unit_range(golden["values.256"], 256))
    x_t = gaussian.diffuse(x_0, jnp.asarray(golden["eps.256"][times[rows] - 1, np.arange(3)]), step.now)
    prediction = golden_model(x_t, step.now)
    for variance in ("large", "small", "learned"):
        term = jax.jit(lambda *a, v=variance: bound.term(*a, variance=v, num_values=256))
        expected = golden[f"{schedule}.full.256.{variance}"][rows, np.arange(3)]
        got = term(prediction, x_0, step, log_small) / np.log(2)
        np.testing.assert_allclose(got, expected, rtol=4e-6, err_msg=variance)
