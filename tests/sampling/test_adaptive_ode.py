"""The adaptive solver, driven by denoisers in closed form, on every path."""

import importlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import build, keys, sampling, schedules
from diffusion.config import switch
from diffusion.sampling import adaptive_ode, prepare, through, uniform_log_snr
from diffusion.sampling.loop import sample
from diffusion.types import Prediction, SelfConditioned
from tests import laws

pytest.importorskip("diffrax")

MEAN, STD = 0.3, 0.5
PATHS = {
    "vp": schedules.vp_linear(),
    "sub-vp": schedules.sub_vp_linear(),
    "ve": schedules.ve_geometric(),
    "edm": schedules.edm(),
    "flow": schedules.flow(),
}
VP, FLOW = PATHS["vp"], PATHS["flow"]
CLEAN = 7.5  # the log-SNR from which the samples are denoised at once


def grid(schedule, sampler, log_snr=CLEAN):
    """Two steps, noisiest -> nearly clean -> clean; from pure noise where the path has it."""
    return prepare(schedule, through(schedule, (schedule.end, float(schedule.time_at(log_snr)), 0.0)), sampler)


def place(n, shape=(3,)):
    """Standard normal, one key a sample; and the keys."""
    ids = keys.per_sample(jax.random.key(0), jnp.arange(n))
    return keys.normal(ids, shape), ids


def on_the_flow(level, z, mean=MEAN):
    """Gaussian data keep z = (x - alpha mean) / marginal std along the probability flow."""
    return level.alpha * mean + np.hypot(level.alpha * STD, level.sigma) * np.asarray(z, np.float64)


def exact(steps, z, mean=MEAN):
    """The exact flow's x at the last level, denoised."""
    last = laws.rows_of(steps.now, -1)
    return laws.gaussian_denoiser(mean, STD)(on_the_flow(last, z, mean), last).x_0


def draw(denoise, sampler, steps, z, ids, mean=MEAN):
    x_T = jnp.float32(on_the_flow(laws.rows_of(steps.now, 0), z, mean))
    return np.asarray(jax.jit(lambda x, ids: sample(sampler, denoise, x, steps, ids))(x_T, ids))


@pytest.mark.parametrize(
    ("name", "solver"), [("vp", "tsit5"), ("sub-vp", "tsit5"), ("ve", "dopri5"), ("edm", "tsit5"), ("flow", "dopri8")]
)
def test_every_path_follows_the_exact_flow(name, solver):
    sampler, (z, ids) = adaptive_ode(PATHS[name], solver=solver), place(256, (1,))
    steps = grid(PATHS[name], sampler)
    x = draw(laws.gaussian_denoiser(MEAN, STD), sampler, steps, z, ids)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, exact(steps, z), atol=2e-3)


def test_the_error_falls_with_the_tolerance():
    """In float64, but for the levels, which are rounded to float32."""
    schedule, tolerances, errors = PATHS["sub-vp"], np.array([1e-2, 1e-4, 1e-6]), []
    z = np.linspace(-2, 2, 9)[:, None]
    for tolerance in tolerances.tolist():
        sampler = adaptive_ode(schedule, rtol=tolerance, atol=tolerance)
        step = laws.rows_of(grid(schedule, sampler), 0)
        with jax.enable_x64(True):
            move = jax.jit(lambda x, step, s=sampler: s.step(laws.gaussian_denoiser(MEAN, STD), x, None, step, None)[0])
            x = np.asarray(move(jnp.asarray(on_the_flow(step.now, z)), jax.tree.map(jnp.asarray, step)))
        assert x.dtype == np.float64
        errors.append(np.abs(x - on_the_flow(step.to, z)).max())
    assert (errors < 100 * tolerances).all(), "tolerances are of one step, errors of the whole way"


def test_the_network_is_called_once_a_stage_for_the_whole_batch():
    """Levels are one per sample, and their number does not grow with the batch."""
    sampler, seen = adaptive_ode(VP, rtol=1e-2, atol=1e-2, solver="bosh3"), []

    def denoise(x, level):
        jax.debug.callback(lambda t, x: seen.append((t.shape, x.shape)), level.t, x)
        return laws.gaussian_denoiser(MEAN, STD)(x, level)

    counts = {}
    for n in (1, 32):
        z, ids = place(n)
        seen.clear()
        jax.block_until_ready(draw(denoise, sampler, grid(VP, sampler), jnp.ones_like(z), ids))
        jax.effects_barrier()
        counts[n] = len(seen)
        assert {x for _, x in seen} == {(n, 3)}
        assert sorted(t for t, _ in seen)[:2] == [(), ()], "once outside the solver at the start of each step"
        assert {t for t, _ in sorted(seen)[2:]} == {(n,)}
    assert 10 < counts[1] < 60
    assert counts[32] == counts[1]  # the same place for each sample, so the same steps


MIXTURE = laws.mixture_denoiser(np.float32([[0.6, 0.6], [-0.5, 0.2]]), np.float32([0.05, 0.3]), np.float32([0.3, 0.7]))


def test_a_sample_depends_on_its_own_noise_alone():
    """At any batch size, over eight devices; the samples are unequally hard, and so take unequal steps."""
    sampler = adaptive_ode(VP)
    options = {"shape": (2,), "steps": grid(VP, sampler), "sampler": sampler}
    whole = sampling.generate(MIXTURE, num_samples=24, **options)
    for first, n in ((5, 1), (4, 7)):
        alone = sampling.generate(MIXTURE, num_samples=n, first_id=first, **options)
        np.testing.assert_allclose(alone, whole[first : first + n], atol=2e-4)  # rounding may refuse a step


def test_every_row_has_its_own_conditioning():
    """The denoiser closes over traced labels, one a row: row i must see label i, in every stage."""
    sampler, (z, ids) = adaptive_ode(FLOW), place(5)
    steps, labels = grid(FLOW, sampler), np.arange(5)[::-1].copy()

    @jax.jit
    def conditional(x, ids, labels, scale):
        mean = scale * labels.astype(jnp.float32)[:, None]
        return sample(sampler, laws.gaussian_denoiser(mean, STD), x, steps, ids)

    mean = 0.3 * labels[:, None]
    x_T = jnp.float32(on_the_flow(laws.rows_of(steps.now, 0), z, mean))
    x = conditional(x_T, ids, jnp.asarray(labels), jnp.float32(0.3))
    np.testing.assert_allclose(x, exact(steps, z, mean), atol=2e-3)


def test_a_self_conditioned_denoiser_is_fed_the_estimate_from_the_start_of_the_step():
    """x_0_hat + 1 counts the remembered evaluations: one a step, however many the solver makes within."""
    sampler, (z, ids) = adaptive_ode(VP), place(4)
    times = (1.0, 0.5, 0.2, float(VP.time_at(CLEAN)), 0.0)

    def bind(x_0_hat):
        return lambda x, level: Prediction(x_0_hat + 1, jnp.ones_like(x))

    steps = prepare(VP, through(VP, times), sampler)
    np.testing.assert_allclose(draw(SelfConditioned(bind), sampler, steps, z, ids), 4, rtol=1e-6)


def test_samples_that_do_not_arrive_are_nan_and_the_others_right(capfd):
    """Rows 0 and 1 start at NaN, so that each of their steps is refused."""
    sampler, (z, ids) = adaptive_ode(VP, max_steps=40), place(6)
    steps = grid(VP, sampler)
    x = draw(laws.gaussian_denoiser(MEAN, STD), sampler, steps, z.at[:2].set(jnp.nan), ids)
    jax.effects_barrier()
    assert np.isnan(x[:2]).all()
    np.testing.assert_allclose(x[2:], exact(steps, z)[2:], atol=2e-3)
    assert "2 of 6 samples did not arrive in max_steps and are NaN" in capfd.readouterr().out


def test_a_run_is_built_and_sampled_by_name():
    full = importlib.import_module("configs.flow_digits").get_config()
    full.network.name, full.network.num_blocks, full.network.channels = "mlp", 1, 16
    full.sampler.name, full.sampler.rtol, full.grid.num_steps = "adaptive_ode", 1e-2, 3
    switch(full, {"network.name", "network.num_blocks", "network.channels", "sampler.name", "sampler.rtol"})
    run = build.build(full, build.Facts((2,), 17, ()))
    assert run.sampler.nfe is None
    points = sampling.generate(run.with_params(run.network.init(jax.random.key(0))), num_samples=8)
    assert points.shape == (8, 2)
    assert np.isfinite(points).all()
    full.schedule.name, full.parameterization.name, full.levels.name = "linear_beta", "eps", "uniform"
    with pytest.raises(ValueError, match="sampler.name=adaptive_ode: .*the schedule is a chain of 1000 steps"):
        build.build(full, run.facts)


def test_without_diffrax_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ValueError, match="adaptive_ode needs diffrax: pip install diffrax"):
        adaptive_ode(schedules.edm())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: adaptive_ode(schedules.linear_beta()),
            "a chain of 1000 steps, which has no levels in between. Use schedule.name=vp_linear",
        ),
        (lambda: adaptive_ode(VP, solver="rk45"), "got solver='rk45', expected one of bosh3, dopri5, dopri8, tsit5"),
        (lambda: adaptive_ode(VP, rtol=0.0), "got rtol=0.0, .*expected positive"),
        (lambda: adaptive_ode(VP, atol=-1.0), "atol=-1.0, .*expected positive"),
        (lambda: adaptive_ode(VP, max_steps=0), "max_steps=0; expected positive"),
        (
            lambda: prepare(VP, uniform_log_snr(VP, 1), adaptive_ode(VP)),
            "grid of 1 steps .* Use grid.name=uniform_log_snr or karras with grid.num_steps=2",
        ),
        (lambda: prepare(FLOW, through(FLOW, (1.0, 0.0)), adaptive_ode(FLOW)), "begins at log_snr = -inf"),
        (lambda: prepare(VP, uniform_log_snr(VP, 2), adaptive_ode(schedules.vp_linear(0.2))), "another schedule"),
    ],
)
def test_errors(make, words):
    with pytest.raises(ValueError, match=words):
        make()
