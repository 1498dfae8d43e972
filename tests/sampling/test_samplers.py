"""Laws that every sampler keeps, driven by denoisers in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from diffusion import devices, keys, lookup, sampling, schedules
from diffusion.sampling import (
    all_steps,
    ancestral,
    annealed_langevin,
    ddim,
    euler,
    heun,
    predictor_corrector,
    prepare,
    strided,
    through,
    unipc,
)
from diffusion.sampling.loop import sample
from diffusion.sampling.sampler import Sampler
from diffusion.schedules import cosine_alpha_bar, linear_beta
from diffusion.types import Prediction, SelfConditioned, Step, float32
from tests import laws

COMPONENTS = lookup.components(sampling, Sampler)
# adaptive_ode is made for a schedule and keeps its own laws in test_adaptive_ode.py
SAMPLERS = {name: make() for name, make in COMPONENTS.items() if name != "adaptive_ode"}
SAMPLERS |= {
    "annealed_langevin": annealed_langevin(moves=2),
    "ancestral small": ancestral("small"),
    "ddim(0.5)": ddim(0.5),
    "ddim(1)": ddim(1.0),
    "heun churn": heun(churn=40.0),
    "euler churn": euler(churn=5.0, churn_min=0.05, churn_max=50.0, noise=1.003),
    "unipc 3": unipc(3),
    "ancestral corrected": predictor_corrector("ancestral", corrections=2),
}
OTHER_OPTIONS = ("ancestral small", "ddim(0.5)", "ddim(1)", "euler churn", "unipc 3", "ancestral corrected")


def quickly(names):
    """The names, those of samplers that stand here with other options too being for the slow tests."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in OTHER_OPTIONS else name for name in names]


MEAN, STD = 0.3, 0.5
DETERMINISTIC = ("ddim", "euler", "heun", "dpmpp_2m", "dpmpp_2s", "dpmpp_3m", "unipc", "unipc 3")
PATHS = {
    "vp": schedules.vp_linear(),
    "sub-vp": schedules.sub_vp_linear(),
    "ve": schedules.ve_geometric(0.001),
    "edm": schedules.edm(),
    "flow": schedules.flow(),
    "cosine": schedules.from_log_snr(lambda t: 16 - 32 * t),
}


def prepared(name, schedule, num_steps):
    return prepare(schedule, strided(schedule, num_steps), SAMPLERS[name])


def noise(n, shape=(2,), seed=0):
    ids = keys.per_sample(jax.random.key(seed), jnp.arange(n))
    return keys.normal(ids, shape), keys.per_sample(jax.random.key(seed + 1), jnp.arange(n))


def test_samplers_are_found_by_name():
    assert {"ancestral", "ddim"} <= set(lookup.components(sampling, Sampler))


@pytest.mark.parametrize("name", quickly(SAMPLERS))
@pytest.mark.parametrize("num_steps", [1, 10, 1000])
def test_a_perfect_denoiser_lands_on_x_0_after_as_many_evaluations_as_are_stated(name, num_steps):
    calls, target = [], np.float32([0.25, -0.75])

    def denoise(x, level):
        jax.debug.callback(lambda: calls.append(1))
        return laws.perfect_denoiser(target)(x, level)

    x_T, ids = noise(4)
    steps = float32(prepared(name, linear_beta(), num_steps))
    x = jax.jit(lambda x, ids: sample(SAMPLERS[name], denoise, x, steps, ids))(x_T, ids)
    np.testing.assert_array_equal(x, np.broadcast_to(target, x.shape))
    jax.effects_barrier()
    assert len(calls) == SAMPLERS[name].nfe(num_steps)


@pytest.mark.parametrize("name", quickly(SAMPLERS))
def test_a_sample_depends_on_its_own_key_alone(name):
    (x_T, ids), steps = noise(16), float32(prepared(name, linear_beta(), 20))
    whole = compiled(name)(x_T, steps, ids)
    for i in (5, 10):
        alone = compiled(name)(x_T[i : i + 1], steps, ids[i : i + 1])
        np.testing.assert_allclose(alone[0], whole[i], atol=1e-5)  # compiled for another size: to rounding


@pytest.mark.parametrize("name", ["ancestral", "ancestral small", "ddim", "ddim(0.5)", "ddim(1)"])
def test_moments_follow_the_recursion(name):
    """For Gaussian data every step is linear in x and z, so mean and variance have a float64 recursion."""
    sampler, steps = SAMPLERS[name], strided(linear_beta(), 50)
    denoise = laws.gaussian_denoiser(np.float64(MEAN), STD)
    mean, variance = 0.0, 1.0
    for step in laws.rows(steps):
        x_0 = lambda x, step=step: denoise(np.asarray(x), step.now).x_0
        gain, keep = x_0(1.0) - x_0(0.0), -np.expm1(-step.h)
        small, large = step.to.sigma**2 * keep, step.now.sigma**2 * keep
        if name.startswith("ancestral"):
            a = step.to.alpha * keep
            b = step.now.alpha / step.to.alpha * (step.to.sigma / step.now.sigma) ** 2
            added = small if "small" in name else large * (step.to.sigma > 0)
        else:
            eta = {"ddim": 0.0, "ddim(0.5)": 0.5, "ddim(1)": 1.0}[name]
            added = eta**2 * small
            b = np.sqrt(step.to.sigma**2 - added) / step.now.sigma
            a = step.to.alpha - b * step.now.alpha
        mean = a * (x_0(0.0) + gain * mean) + b * mean
        variance = (a * gain + b) ** 2 * variance + added
    x_T, ids = noise(40_000, (1,))
    x = np.asarray(sample(sampler, laws.gaussian_denoiser(MEAN, STD), x_T, steps, ids), np.float64)
    assert x.mean() == pytest.approx(mean, abs=5 * np.sqrt(variance / 40_000))
    assert x.var() == pytest.approx(variance, rel=5 * np.sqrt(2 / 40_000))


@pytest.mark.parametrize("name", quickly(name for name in SAMPLERS if name != "annealed_langevin"))
def test_the_full_chain_draws_the_data_distribution(name):
    """With the exact denoiser, 1000 steps leave no visible bias, but for the finite Langevin moves (snr^2 of 0.026)."""
    x_T, ids = noise(100, (64,))
    steps = prepare(linear_beta(), all_steps(linear_beta()), SAMPLERS[name])
    x = np.asarray(sample(SAMPLERS[name], laws.gaussian_denoiser(MEAN, STD), x_T, steps, ids))
    assert x.mean() == pytest.approx(MEAN, abs=0.02)
    assert x.std() == pytest.approx(STD, abs=0.02 if "correct" not in name else 0.03)


def test_langevin_on_a_ladder_draws_the_data_distribution():
    ladder, sampler = schedules.ve_ladder(10, 0.01, 10.0), annealed_langevin(moves=100)
    x_T, ids = noise(5000, (1,))
    x = np.asarray(sample(sampler, laws.gaussian_denoiser(MEAN, STD), 10 * x_T, all_steps(ladder), ids))
    assert x.mean() == pytest.approx(MEAN, abs=0.03)
    assert x.std() == pytest.approx(STD, abs=0.03)


def between(schedule, num_steps, log_snr=(-8.0, 6.0)):
    """A grid that is even in log-SNR and ends before clean data, float64."""
    level = schedule.level(schedule.time_at(np.linspace(*log_snr, num_steps + 1)))
    now, to = laws.rows_of(level, slice(None, -1)), laws.rows_of(level, slice(1, None))
    return Step(now, to, np.full(num_steps, (log_snr[1] - log_snr[0]) / num_steps))


@functools.cache
def one_step(sampler, data):
    denoise = laws.gaussian_denoiser(MEAN, STD) if data == "gaussian" else laws.mixture_denoiser(**MIXTURE)
    return jax.jit(lambda x, state, row: sampler.step(denoise, x, state, row, None))


@functools.cache
def compiled(name):
    """sample(...) of Gaussian data with this sampler, compiled once for all grids of one length."""
    denoise = laws.gaussian_denoiser(MEAN, STD)
    return jax.jit(lambda x_T, steps, ids: sample(SAMPLERS[name], denoise, x_T, steps, ids))


PLACE = np.linspace(-2, 2, 9)[:, None]
MIXTURE = {"means": np.array([[-0.6], [0.7]]), "stds": np.array([0.4, 0.3]), "weights": np.array([0.4, 0.6])}


def run_in_float64(sampler, schedule, num_steps, data="gaussian"):
    """(x / alpha at the end, alpha) from nine points, two standard deviations of the Gaussian to either side."""
    steps = prepare(schedule, between(schedule, num_steps), sampler)
    first = laws.rows_of(steps.now, 0)
    with jax.enable_x64(True):
        x = jnp.asarray(first.alpha * MEAN + np.hypot(first.alpha * STD, first.sigma) * PLACE)
        state = sampler.init(x)
        for row in laws.rows(steps):
            x, state = one_step(sampler, data)(x, state, row)
        return np.asarray(x) / laws.rows_of(steps.to, -1).alpha


@functools.cache
def exact_flow(data, log_snr=(-8.0, 6.0)):
    """x / alpha where the probability flow carries the same nine points: Gaussian data keep their standard score; a
    mixture's flow is solved to ten digits by an unrelated method, dy / ds = eps in y = x / alpha and s = sigma / alpha.
    """
    start, end = np.exp(-np.array(log_snr) / 2)
    if data == "gaussian":
        return MEAN + np.hypot(STD, end) * PLACE
    means, stds, weights = MIXTURE["means"][:, 0], MIXTURE["stds"], MIXTURE["weights"]

    def slope(s, y):
        variance, away = stds**2 + s**2, y[:, None] - means
        likelihood = weights * np.exp(-(away**2) / variance / 2) / np.sqrt(variance)
        x_0 = (likelihood * (means + stds**2 / variance * away)).sum(1) / likelihood.sum(1)
        return (y - x_0) / s

    y = MEAN + np.hypot(STD, start) * PLACE[:, 0]
    return solve_ivp(slope, (start, end), y, method="DOP853", rtol=1e-11, atol=1e-11).y[:, -1:]


def error(name, path, num_steps, data):
    return np.abs(run_in_float64(SAMPLERS[name], PATHS[path], num_steps, data) - exact_flow(data)).max()


@pytest.mark.parametrize("path", ["vp", "edm", "flow"])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_measured_order_is_the_stated_one(name, path):
    errors = [error(name, path, num_steps, "gaussian") for num_steps in (40, 80, 160)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert orders.min() > SAMPLERS[name].order - 0.15
    assert orders[-1] < SAMPLERS[name].order + 0.8


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_measured_order_on_a_mixture_is_the_stated_one(name):
    """Over four doublings, since errors of opposite sign may cancel at one number of steps (UniPC with predictor 3)."""
    order = np.log2(error(name, "vp", 80, "mixture") / error(name, "vp", 1280, "mixture")) / 4
    assert SAMPLERS[name].order - 0.15 < order < SAMPLERS[name].order + 0.8


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_3m", "dpmpp_2s", "unipc", "ddim", "euler", "heun"])
def test_the_path_does_not_matter_on_the_same_log_snr_grid(name):
    """In the chart x / alpha every path is the same, and so is every solver's result."""
    ends = [run_in_float64(SAMPLERS[name], path, 12, "mixture") for path in PATHS.values()]
    for other in ends[1:]:
        np.testing.assert_allclose(other, ends[0], atol=1e-8)


def test_euler_is_ddim_and_the_first_step_of_every_exponential_solver():
    x_T, ids = noise(8)
    denoise = laws.gaussian_denoiser(MEAN, STD)
    first = sample(ddim(), denoise, x_T, strided(cosine_alpha_bar(), 25), ids)
    np.testing.assert_allclose(sample(euler(), denoise, x_T, strided(cosine_alpha_bar(), 25), ids), first, atol=1e-6)
    single = jax.tree.map(lambda column: jnp.float32(column[3]), strided(cosine_alpha_bar(), 25))
    expected = ddim().step(denoise, x_T, None, single, ids)[0]
    for name in ("dpmpp_2m", "dpmpp_3m", "unipc"):
        sampler = SAMPLERS[name]
        np.testing.assert_allclose(sampler.step(denoise, x_T, sampler.init(x_T), single, ids)[0], expected, atol=1e-6)


def test_a_grid_that_was_not_prepared_is_refused():
    x_T, ids = noise(2)
    for name in ("dpmpp_2s", "heun churn"):
        with pytest.raises(ValueError, match=r"use steps = prepare\(schedule, steps, sampler\)"):
            sample(SAMPLERS[name], laws.perfect_denoiser(0.0), x_T, strided(linear_beta(), 5), ids)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", quickly(name for name in SAMPLERS if name != "annealed_langevin"))
def test_every_sampler_draws_the_data_on_every_path(name, path):
    """60 steps, even in log-SNR, from pure noise where the path has it. 64 pixels, for the corrector's norms."""
    schedule, sampler = PATHS[path], SAMPLERS[name]
    times = schedule.time_at(np.linspace(-9.0, 9.0, 60))
    if path == "flow":
        times[0] = schedule.end
    steps = float32(prepare(schedule, through(schedule, np.append(times, 0.0)), sampler))
    x_T, ids = noise(200, (64,))
    scale = jnp.hypot(steps.now.alpha[0] * STD, steps.now.sigma[0])
    x = np.asarray(compiled(name)(scale * x_T, steps, ids))
    assert x.mean() == pytest.approx(MEAN, abs=0.03)
    assert x.std() == pytest.approx(STD, rel=0.1)


@pytest.mark.parametrize("name", quickly(name for name in SAMPLERS if name != "annealed_langevin"))
def test_every_sampler_draws_both_parts_of_a_mixture(name):
    """Two Gaussians far apart in 64 dimensions: as many samples in each as its weight says, with its moments."""
    means, stds, weights = np.array([[-0.5], [0.5]]) * np.ones(64), np.array([0.3, 0.2]), np.array([0.3, 0.7])
    x_T, ids = noise(600, (64,))
    steps = prepared(name, linear_beta(), 100)
    x = np.asarray(sample(SAMPLERS[name], laws.mixture_denoiser(means, stds, weights), x_T, steps, ids))
    second = x.mean(1) > 0
    assert second.mean() == pytest.approx(0.7, abs=4 * np.sqrt(0.3 * 0.7 / 600))
    for part, mean, std in zip((x[~second], x[second]), (-0.5, 0.5), stds, strict=True):
        assert part.mean() == pytest.approx(mean, abs=0.02)
        assert part.std() == pytest.approx(std, rel=0.15)


def test_the_mixtures_denoiser_is_tweedies():
    """x_0 = (x + sigma^2 grad log p(x)) / alpha, with p(x) written down and differentiated."""
    schedule, x = schedules.flow(), jnp.linspace(-1.5, 1.5, 7)[:, None]

    for t in (0.2, 0.7):
        level = float32(schedule.level(np.full(7, t)))

        def log_density(x, t=t):
            std = jnp.hypot((1 - t) * MIXTURE["stds"], t)
            each = jax.scipy.stats.norm.logpdf(x, (1 - t) * MIXTURE["means"][:, 0], std)
            return jax.nn.logsumexp(each, b=MIXTURE["weights"])

        score = jax.vmap(jax.grad(log_density))(x[:, 0])[:, None]
        x_0, eps, *_ = laws.mixture_denoiser(**MIXTURE)(x, level)
        np.testing.assert_allclose(x_0, (x + t**2 * score) / (1 - t), atol=2e-5)
        np.testing.assert_allclose(eps, -t * score, atol=2e-5)


@pytest.mark.parametrize("name", quickly(SAMPLERS))
def test_a_sample_is_the_same_on_one_device_and_on_eight(name, monkeypatch):
    denoise, steps = laws.gaussian_denoiser(MEAN, STD), prepared(name, linear_beta(), 5)
    options = {"num_samples": 8, "shape": (2,), "sampler": SAMPLERS[name], "steps": steps, "seed": 3}
    eight = sampling.generate(denoise, **options)
    one_device = devices.Mesh(np.array(jax.devices()[:1]), ("data",))
    monkeypatch.setattr(devices, "data_mesh", lambda: one_device)
    np.testing.assert_allclose(sampling.generate(denoise, **options), eight, atol=1e-5)


def test_ddim_1_is_ancestral_with_the_small_variance():
    x_T, ids = noise(8)
    denoise, steps = laws.gaussian_denoiser(MEAN, STD), strided(cosine_alpha_bar(), 25)
    np.testing.assert_allclose(
        sample(ddim(1.0), denoise, x_T, steps, ids), sample(ancestral("small"), denoise, x_T, steps, ids), atol=2e-5
    )


def test_ddim_converges_with_its_order_to_the_flow_of_the_ode():
    """The exact flow of Gaussian data keeps (x - alpha mean) / marginal std constant."""
    schedule = cosine_alpha_bar(4096)
    start = schedule.level(3600)
    denoise = laws.gaussian_denoiser(MEAN, STD)
    x_T = np.linspace(-2, 2, 9)[:, None]
    exact = MEAN + STD * (x_T - start.alpha * MEAN) / np.sqrt(start.alpha**2 * STD**2 + start.sigma**2)

    def error(num_steps):
        x = x_T
        for step in laws.rows(through(schedule, np.arange(num_steps, -1, -1) * (3600 // num_steps))):
            x_0, eps, *_ = denoise(x, step.now)
            x = step.to.alpha * x_0 + step.to.sigma * eps
        ids = keys.per_sample(jax.random.key(0), jnp.arange(9))
        steps = through(schedule, np.arange(num_steps, -1, -1) * (3600 // num_steps))
        ours = sample(ddim(), denoise, jnp.asarray(x_T, jnp.float32), steps, ids)
        np.testing.assert_allclose(ours, x, atol=1e-5, err_msg="the float64 recursion of eq. 12")
        return np.abs(x - exact).max()

    errors = [error(n) for n in (30, 60, 120, 240)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(orders, ddim().order, atol=0.15)


def test_saved_states_start_with_the_noise_and_end_with_the_sample():
    x_T, ids = noise(3)
    denoise, steps = laws.gaussian_denoiser(MEAN, STD), strided(linear_beta(), 10)
    x, path = sample(ancestral(), denoise, x_T, steps, ids, save_every=4)
    assert path.shape == (4, 3, 2)
    np.testing.assert_array_equal(path[0], x_T)
    np.testing.assert_array_equal(path[-1], x)
    _, every = sample(ancestral(), denoise, x_T, steps, ids, save_every=1)
    np.testing.assert_allclose(path[1:3], every[np.array([4, 8])], rtol=1e-6)
    with pytest.raises(ValueError, match="save_every=0"):
        sample(ancestral(), denoise, x_T, steps, ids, save_every=0)


@pytest.mark.parametrize("name", quickly(SAMPLERS))
def test_a_self_conditioned_denoiser_is_fed_its_own_last_estimate(name):
    """An estimate that adds 1 to the one before counts the evaluations, whatever the sampler."""
    x_T, ids = noise(2)

    def bind(x_0_hat):
        return lambda x, level: Prediction(x_0_hat + 1, jnp.ones_like(x))

    x = sample(SAMPLERS[name], SelfConditioned(bind), x_T, prepared(name, linear_beta(), 7), ids)
    assert np.isfinite(x).all()
    if SAMPLERS[name].nfe(7) == 7:
        np.testing.assert_allclose(x, 7, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ddim(1.5), "got eta=1.5"),
        (lambda: ddim(-0.1), "0 is deterministic"),
        (lambda: heun(churn=-1.0), "expected churn >= 0"),
        (lambda: unipc(4), "expected 2 or 3"),
        (lambda: predictor_corrector("langevin"), "expected 'reverse_diffusion' or 'ancestral'"),
        (lambda: predictor_corrector(snr=0.0), "expected snr > 0"),
        (lambda: annealed_langevin(moves=0), "expected moves >= 1"),
        (lambda: prepare(PATHS["flow"], strided(PATHS["flow"], 5), annealed_langevin()), "cannot start at pure noise"),
    ],
)
def test_errors(make, words):
    with pytest.raises(ValueError, match=words):
        make()
