import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import gaussian, guidance, keys, lookup, sampling
from diffusion.gaussian import diffuse
from diffusion.guidance import chain, classifier_free, clip, energy
from diffusion.sampling.loop import sample
from diffusion.sampling.sampler import Sampler
from diffusion.schedules import linear_beta, linear_beta_scaled, vp_linear, zero_terminal_snr
from diffusion.types import Prediction, expand
from tests import laws

LEVEL = linear_beta().level(jnp.array([10, 500, 900]))
X = jnp.array([[0.5, -2.0, 1.0, 3.0]] * 3)


def constant(x_0):
    return lambda x, level: Prediction(jnp.broadcast_to(jnp.array(x_0), x.shape), jnp.zeros_like(x))


def test_clip_keeps_x_0_in_range_and_eps_consistent():
    got = guidance.clip()(constant([0.5, -2.0, 1.0, 3.0]))(X, LEVEL)
    np.testing.assert_array_equal(got.x_0[0], [0.5, -1, 1, 1])
    np.testing.assert_allclose(diffuse(got.x_0, got.eps, LEVEL), X, rtol=1e-5)


def test_dynamic_threshold_divides_by_the_quantile_but_never_blows_up_small_estimates():
    got = guidance.dynamic(percentile=1.0)(constant([0.5, -2.0, 1.0, 4.0]))(X, LEVEL)
    np.testing.assert_allclose(got.x_0[1], [0.125, -0.5, 0.25, 1.0])
    half = guidance.dynamic(percentile=0.5)(constant([0.5, -2.0, 1.0, 4.0]))(X, LEVEL)
    np.testing.assert_allclose(half.x_0[1], np.clip([0.5, -2.0, 1.0, 4.0], -1.5, 1.5) / 1.5, rtol=1e-6)
    small = guidance.dynamic()(constant([0.5, -0.2, 0.1, 0.0]))(X, LEVEL)
    np.testing.assert_allclose(small.x_0[2], [0.5, -0.2, 0.1, 0.0])
    np.testing.assert_allclose(diffuse(got.x_0, got.eps, LEVEL), X, rtol=1e-5, atol=1e-6)


MIXTURE = {
    "means": np.array([[0.6, 0.6, -0.2, 0.1], [-0.5, 0.2, 0.4, 0.3], [0.0, -0.7, 0.1, -0.6]]),
    "stds": np.array([0.2, 0.3, 0.5]),
    "weights": np.array([0.3, 0.5, 0.2]),
}
TIMES = np.array([100, 500, 900])
PLACES = np.random.default_rng(0).normal(size=(3, 4))
COND = laws.gaussian_denoiser(MIXTURE["means"][1][None].astype(np.float32), 0.3)
UNCOND = laws.mixture_denoiser(*[np.float32(column) for column in MIXTURE.values()])
AT = linear_beta().level(jnp.asarray(TIMES))
HERE = jnp.float32(PLACES)


def exact_x_0(scale):
    """The guided estimate of component 1 of the mixture, written down in float64."""
    means, stds, weights = MIXTURE.values()
    level = linear_beta().level(TIMES)
    estimates, likelihoods = [], []
    for mean, std, weight in zip(means, stds, weights, strict=True):
        variance = (level.alpha * std) ** 2 + level.sigma**2
        away = PLACES - level.alpha[:, None] * mean[None]
        estimates.append(mean[None] + (level.alpha * std**2 / variance)[:, None] * away)
        likelihoods.append(weight * np.exp(-(away**2).sum(1) / variance / 2) / variance**2)
    shares = np.array(likelihoods) / np.sum(likelihoods, axis=0)
    uncond = (shares[..., None] * np.array(estimates)).sum(0)
    return uncond + scale * (estimates[1] - uncond)


def assert_consistent(prediction):
    np.testing.assert_allclose(diffuse(prediction.x_0, prediction.eps, AT), HERE, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guidance_of_a_mixture_is_the_closed_form_and_stays_consistent(scale):
    got = classifier_free(COND, UNCOND, scale)(HERE, AT)
    np.testing.assert_allclose(got.x_0, exact_x_0(scale), atol=1e-5)
    assert_consistent(got)


def test_a_scale_of_1_is_the_conditional_denoiser_itself():
    assert classifier_free(COND, UNCOND, 1.0, interval=(-2.0, 2.0), rescale=0.5) is COND


def test_only_the_levels_inside_the_interval_are_guided():
    low, high = float(AT.log_snr[1]), float(AT.log_snr[0])  # the lower end belongs to it, the upper one does not
    got = classifier_free(COND, UNCOND, 3.0, interval=(low, high))(HERE, AT)
    plain, everywhere = COND(HERE, AT), classifier_free(COND, UNCOND, 3.0)(HERE, AT)
    for row, expected in enumerate([plain, everywhere, plain]):
        np.testing.assert_array_equal(got.x_0[row], expected.x_0[row])
        np.testing.assert_array_equal(got.eps[row], expected.eps[row])


def test_outside_the_interval_of_one_level_the_other_branch_is_not_evaluated():
    calls = []

    def uncond(x, level):
        jax.debug.callback(lambda: calls.append(1))
        return UNCOND(x, level)

    denoise = jax.jit(classifier_free(COND, uncond, 3.0, interval=(-3.0, 3.0)))
    for t, times in ((10, 0), (500, 1), (900, 1)):
        level = linear_beta().level(jnp.asarray(t))
        got = denoise(HERE, level)
        expected = classifier_free(COND, UNCOND, 3.0)(HERE, level) if level.log_snr**2 < 9 else COND(HERE, level)
        np.testing.assert_allclose(got.x_0, expected.x_0, atol=1e-5)
        jax.effects_barrier()
        assert len(calls) == times


@pytest.mark.parametrize("share", [0.7, 1.0])
def test_rescaling_brings_each_samples_deviation_back_to_the_conditionals(share):
    got = classifier_free(COND, UNCOND, 3.0, rescale=share)(HERE, AT)
    wanted, had = exact_x_0(1.0), exact_x_0(3.0)
    factor = share * wanted.std(1) / had.std(1) + 1 - share
    assert np.abs(factor - 1).max() > 0.2
    np.testing.assert_allclose(got.x_0, factor[:, None] * had, atol=1e-5)
    assert_consistent(got)


def test_an_estimate_without_deviation_is_not_rescaled():
    flat = lambda value: lambda x, level: Prediction(jnp.full_like(x, value), x)
    got = classifier_free(flat(0.5), flat(0.25), 3.0, rescale=1.0)(HERE, AT)
    np.testing.assert_allclose(got.x_0, 1.0)


def chain_of(name, num_steps):
    """(sampler, grid) on the VP path."""
    schedule = vp_linear()
    make = lookup.components(sampling, Sampler)[name]
    sampler = make(schedule) if name == "adaptive_ode" else make()
    times = schedule.time_at(np.linspace(-8.0, 6.0, 2 if name == "adaptive_ode" else num_steps))
    return sampler, sampling.prepare(schedule, sampling.through(schedule, np.append(times, 0.0)), sampler)


SEEN, NOISE = 0.4, 0.3
"""An observation of x_0, and its standard deviation."""


def posterior(mean, std, times=1):
    """(mean, std) of N(mean, std^2) after so many observations of SEEN, float64."""
    precision = 1 / std**2 + times / NOISE**2
    return (mean / std**2 + times * SEEN / NOISE**2) / precision, precision**-0.5


def spread(std, level, x):
    """The variance of SEEN given x_t: that of x_0 given x_t, for data N(., std^2), and the observation's own."""
    alpha, sigma = (expand(field, x) for field in (level.alpha, level.sigma))
    return std**2 * sigma**2 / (alpha**2 * std**2 + sigma**2) + NOISE**2


def observation(mean, std):
    """-log p(SEEN | x_t) for data N(mean, std^2), up to a constant."""

    def of(x_t, level):
        x_0 = laws.gaussian_denoiser(mean, std)(x_t, level).x_0
        return ((SEEN - x_0) ** 2 / (2 * spread(std, level, x_t))).sum(-1)

    return of


def observation_of_x_0(std):
    """The same of the estimate: the gradient has to come through the denoiser."""
    return lambda x_0, level: ((SEEN - x_0) ** 2 / (2 * spread(std, level, x_0))).sum(-1)


ONE, TWO = posterior(0.1, 0.5), posterior(0.1, 0.5, times=2)
DATA = laws.gaussian_denoiser(0.1, 0.5)
GUIDED = {  # denoisers of which the closed form is that of another Gaussian
    "classifier_free": (
        classifier_free(laws.gaussian_denoiser(0.3, 0.5), DATA, 2.5),
        laws.gaussian_denoiser(0.1 + 2.5 * 0.2, 0.5),
    ),
    "energy": (energy(observation(0.1, 0.5))(DATA), laws.gaussian_denoiser(*ONE)),
    "energy of x_0": (energy(observation_of_x_0(0.5), of="x_0")(DATA), laws.gaussian_denoiser(*ONE)),
    "a scale of 2": (
        energy(lambda x, level: observation(0.1, 0.5)(x, level) / 2, 2.0)(DATA),
        laws.gaussian_denoiser(*ONE),
    ),
    "a chain": (
        chain(clip(-90.0, 90.0), energy(observation(0.1, 0.5)), energy(observation(*ONE)), clip(-90.0, 90.0))(DATA),
        laws.gaussian_denoiser(*TWO),
    ),
    "classifier_free of a chain": (
        classifier_free(energy(observation(0.1, 0.5))(DATA), energy(observation(0.1, 0.5))(DATA), 3.0),
        laws.gaussian_denoiser(*ONE),
    ),
}


@pytest.mark.parametrize("guided", GUIDED)
def test_a_guided_denoiser_is_the_closed_form_at_every_level(guided):
    denoise, exact = GUIDED[guided]
    got, expected = denoise(HERE, AT), exact(HERE, AT)
    np.testing.assert_allclose(got.x_0, expected.x_0, atol=2e-5)
    assert_consistent(got)


@pytest.mark.parametrize(
    "guided",
    ["classifier_free", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("energy of x_0", "a chain"))],
)
@pytest.mark.parametrize("name", lookup.components(sampling, Sampler))
def test_every_sampler_draws_from_every_kind_of_guided_denoiser(name, guided):
    """What guides a Gaussian here makes it another Gaussian, from whose denoiser the same samples come."""
    sampler, steps = chain_of(name, 5)
    denoise, exact = GUIDED[guided]
    if name == "ancestral":  # a threshold makes it take the score form, whose closed form this is
        denoise = clip(-90.0, 90.0)(denoise)
    ids = keys.per_sample(jax.random.key(0), jnp.arange(4))
    x_T = keys.normal(ids, (3,))

    def draw(denoise):
        return jax.jit(lambda x, ids: sample(sampler, denoise, x, steps, ids))(x_T, ids)

    np.testing.assert_allclose(draw(denoise), draw(exact), atol=2e-4)


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("num_energies", [1, 2])
def test_ancestral_sampling_shifts_its_mean_by_the_variance_times_the_gradient(variance, num_energies):
    """Dhariwal & Nichol 2021, algorithm 1, in float64: mu + Sigma grad log p(y | x_t)."""
    function = observation(0.1, 0.5)
    denoise = chain(*[energy(function, 2.0 / num_energies)] * num_energies)(DATA)
    schedule = linear_beta_scaled(50)
    for t in (50, 20, 1):
        step = laws.step_at(schedule, t, t - 1)
        mean, small, large = gaussian.posterior(np.float64(DATA(HERE, step.now).x_0), PLACES, step)
        gradient = jax.grad(lambda x, step=step: function(x, step.now).sum())(HERE)
        expected = mean - 2.0 * (small if variance == "small" else large) * np.float64(gradient)
        sampler, ids = sampling.ancestral(variance), keys.per_sample(jax.random.key(0), jnp.arange(3))
        got, _ = sampler.step(denoise, HERE, None, jax.tree.map(jnp.float32, step), ids)
        plain, _ = sampler.step(DATA, HERE, None, jax.tree.map(jnp.float32, step), ids)
        np.testing.assert_allclose(got - plain, expected - mean, atol=1e-5)


PUSHED = energy(observation(0.1, 0.5))(DATA)


@pytest.mark.parametrize(
    ("cond", "uncond", "options"),
    [(PUSHED, PUSHED, {}), (DATA, PUSHED, {}), (PUSHED, DATA, {}), (PUSHED, PUSHED, {"rescale": 0.7})],
)
def test_an_interval_takes_pushed_branches(cond, uncond, options):
    inside = {"interval": (-3.0, 3.0)} | options
    guided, everywhere = classifier_free(cond, uncond, 3.0, **inside), classifier_free(cond, uncond, 3.0, **options)
    for t in (10, 500, 900):
        level = linear_beta().level(jnp.asarray(t))
        expected = (everywhere if level.log_snr**2 < 9 else cond)(HERE, level)
        np.testing.assert_allclose(jax.jit(guided)(HERE, level).x_0, expected.x_0, atol=1e-5)
    rows, inside = guided(HERE, AT).x_0, np.abs(AT.log_snr) < 3
    assert set(inside) == {True, False}
    expected = np.where(inside[:, None], everywhere(HERE, AT).x_0, cond(HERE, AT).x_0)
    np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_a_threshold_after_an_energy_bounds_x_0_and_leaves_no_push():
    strong = energy(observation(0.1, 0.5), 50.0)(DATA)
    assert np.abs(strong(HERE, AT).x_0).max() > 1
    assert strong(HERE, AT).push is not None
    got = clip()(strong)(HERE, AT)
    assert np.abs(got.x_0).max() == 1
    assert got.push is None
    assert_consistent(got)


def test_pure_noise_is_not_pushed():
    """x_t says nothing of x_0 there, and sigma^2 / alpha is infinite."""
    level = zero_terminal_snr(linear_beta()).level(jnp.asarray(1000))
    assert level.alpha == 0
    x_0 = lambda x, level: Prediction(jnp.full_like(x, 0.3), x)
    got = energy(lambda x, level: (x**2).sum(-1))(x_0)(HERE, level)
    np.testing.assert_array_equal(got.x_0, np.float32(0.3) * np.ones((3, 4), np.float32))
    np.testing.assert_array_equal(got.eps, HERE)
    np.testing.assert_array_equal(got.push, 0)
    step = jax.tree.map(jnp.float32, laws.step_at(zero_terminal_snr(linear_beta()), 1000, 980))
    ids = keys.per_sample(jax.random.key(0), jnp.arange(3))
    for sampler in (sampling.ancestral(), sampling.ddim()):
        ends = [sampler.step(d, HERE, None, step, ids)[0] for d in (x_0, energy(lambda x, level: (x**2).sum(-1))(x_0))]
        np.testing.assert_array_equal(*ends)


@pytest.mark.parametrize("scale", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_a_step_of_cfg_plus_plus_is_one_of_plain_guidance_with_a_scale_of_its_size(name, scale):
    sampler, steps = chain_of(name, 5)
    assert sampler.renoises
    guided = classifier_free(COND, UNCOND, scale, plus_plus=True)
    got = guided(HERE, AT)
    np.testing.assert_allclose(got.x_0, exact_x_0(scale), atol=1e-5)
    np.testing.assert_array_equal(got.eps, UNCOND(HERE, AT).eps)
    for step in (laws.rows_of(steps, 2), laws.rows_of(steps, -1)):
        step = jax.tree.map(jnp.float32, step)
        plain = classifier_free(COND, UNCOND, float(scale / -np.expm1(-step.h / 2)))
        x, expected = (sampler.step(denoise, HERE, None, step, None)[0] for denoise in (guided, plain))
        np.testing.assert_allclose(x, expected, atol=1e-5)


def test_the_samplers_of_cfg_plus_plus_are_the_two_that_noise_x_0_again_by_eps():
    made = {name: chain_of(name, 5)[0] for name in lookup.components(sampling, Sampler)}
    assert {name for name, sampler in made.items() if sampler.renoises} == {"ddim", "euler"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: guidance.clip(1.0, -1.0), "expected low < high"),
        (lambda: guidance.dynamic(percentile=1.5), "expected a share"),
        (lambda: energy(observation(0.1, 0.5), np.inf), "got scale=inf, expected a finite number"),
        (lambda: energy(observation(0.1, 0.5), of="eps"), "expected 'x_t' or 'x_0'"),
        (lambda: energy(lambda x, level: x.sum())(DATA)(HERE, AT), r"shape \(\), expected \(3,\), one number"),
        (lambda: classifier_free(COND, UNCOND, -1.0), "got scale=-1.0, expected 0"),
        (lambda: classifier_free(COND, UNCOND, 2.0, interval=(1.0, -1.0)), "in log-SNR with low < high"),
        (lambda: classifier_free(COND, UNCOND, 2.0, rescale=1.5), "expected a share in"),
        (lambda: classifier_free(COND, UNCOND, 2.0, plus_plus=True), "expects a scale in"),
        (lambda: classifier_free(COND, UNCOND, 0.6, rescale=0.5, plus_plus=True), "and rescale=0"),
    ],
)
def test_errors(make, words):
    with pytest.raises(ValueError, match=words):
        make()
