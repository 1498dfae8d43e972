import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import lookup, schedules
from diffusion.schedules import Schedule, cosine_alpha_bar, from_betas, linear_beta, linear_beta_scaled
from tests import laws

COMPONENTS = lookup.components(schedules, Schedule)
PATHS = {name: make() for name, make in COMPONENTS.items() if name != "from_betas" and make().num_steps is None}
PATHS |= {
    "flow shifted": schedules.flow(shift=3.0),
    "from_log_snr": schedules.from_log_snr(lambda t: 10 - 20 * t),
    "shifted": schedules.shift_log_snr(schedules.vp_linear(), -2.0),
}
FACTORIES = {n: make for n, make in COMPONENTS.items() if n not in {*PATHS, "from_betas", "ve_ladder"}}

GOLDEN = {  # alpha_bar_1, alpha_bar_T, max sigma/alpha, first nonzero posterior variance, L_T at E[x^2] = .25
    "linear": (linear_beta(), 0.999900, 4.0358e-05, 157.41, 5.453e-05, 7.28e-06),
    "linear scaled 4000": (linear_beta_scaled(4000), 0.999975, 4.2467e-05, 153.45, 1.280e-05, 7.66e-06),
    "cosine": (cosine_alpha_bar(), 0.999959, 2.4288e-09, 20291, 2.179e-05, 4.4e-10),
    "cosine 4000": (cosine_alpha_bar(4000), 0.999990, 1.5180e-10, 81165, 5.008e-06, 2.7e-11),
    "sigmoid": (schedules.sigmoid_alpha_bar(), 0.999700, 3.0028e-07, 1824.9, 1.506e-04, 5.4e-08),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_numbers(name):
    schedule, first, last, ratio, variance, prior_bits = GOLDEN[name]
    level = schedule.level(np.arange(schedule.num_steps + 1))
    assert level.alpha[1] ** 2 == pytest.approx(first, abs=6e-7)
    assert level.alpha[-1] ** 2 == pytest.approx(last, rel=2e-5)
    assert (level.sigma / level.alpha)[-1] == pytest.approx(ratio, rel=4e-5)
    step = laws.step_at(schedule, 2, 1)
    assert step.to.sigma**2 * -np.expm1(-step.h) == pytest.approx(variance, rel=4e-4)
    a, s = level.alpha[-1], level.sigma[-1]
    kl = 0.5 * (s**2 + a**2 * 0.25 - 1 - 2 * np.log(s))  # KL(q(x_T | x_0) || N(0, 1)), mean square .25
    assert kl / np.log(2) == pytest.approx(prior_bits, rel=0.02)


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("num_steps", [1, 2, 25, 1000])
def test_every_schedule_is_a_variance_preserving_path_from_clean_to_noisy(name, num_steps):
    if name == "linear_beta_scaled":
        num_steps = max(num_steps, 21)  # below that its endpoints leave (0, 1): see test_errors
    schedule = FACTORIES[name](num_steps=num_steps)
    level = schedule.level(np.arange(num_steps + 1))
    assert schedule.num_steps == num_steps
    np.testing.assert_allclose(level.alpha**2 + level.sigma**2, 1, atol=1e-15)
    assert (np.diff(level.log_snr) < 0).all()
    assert level.log_snr[0] == np.inf
    assert (level.alpha[0], level.sigma[0]) == (1, 0)
    np.testing.assert_allclose(level.log_snr[1:], 2 * np.log(level.alpha[1:] / level.sigma[1:]), atol=1e-10)


def test_numpy_gives_float64_and_jax_gives_float32_also_inside_jit():
    schedule = linear_beta()
    exact = laws.ddpm_tables(laws.linear_betas()).alpha_bar
    t = np.array([1, 2, 500, 999, 1000])
    host, device = schedule.level(t), jax.jit(lambda t: schedule.level(t))(jnp.asarray(t))
    np.testing.assert_allclose(host.alpha**2, exact[t], rtol=1e-13)
    for name in ("alpha", "sigma", "log_snr"):
        assert getattr(host, name).dtype == np.float64
        assert getattr(device, name).dtype == jnp.float32
        np.testing.assert_allclose(getattr(device, name), getattr(host, name), rtol=2e-7)


def test_cosine_follows_its_formula_until_the_cap():
    t = np.arange(1001) / 1000
    f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(cosine_alpha_bar().level(np.arange(900)).alpha ** 2, (f / f[0])[:900], rtol=1e-11)
    last = cosine_alpha_bar().level(np.array([999, 1000])).alpha ** 2
    assert 1 - last[1] / last[0] == pytest.approx(0.999, rel=1e-9)


def test_scaling_keeps_the_end_of_the_path():
    ends = [linear_beta_scaled(n).level(n).log_snr for n in (100, 1000, 4000)]
    np.testing.assert_allclose(ends, ends[1], rtol=0.07)
    assert linear_beta_scaled(1000).level(777) == linear_beta(1000).level(777)


@pytest.mark.parametrize("name", FACTORIES)
def test_time_at_inverts_level(name):
    schedule = FACTORIES[name](num_steps=50)
    t = np.arange(51)
    np.testing.assert_array_equal(schedule.time_at(schedule.level(t).log_snr), t)
    np.testing.assert_array_equal(schedule.time_at(schedule.level(jnp.asarray(t)).log_snr), t)


def test_golden_numbers_of_the_vp_sde():
    end, early = schedules.vp_linear().level(1.0), schedules.vp_linear().level(1e-3)
    assert end.alpha**2 == pytest.approx(4.3186e-05, rel=1e-5)
    assert end.sigma / end.alpha == pytest.approx(152.17, abs=5e-3)
    assert early.sigma == pytest.approx(0.01049, abs=5e-6)


@pytest.mark.parametrize("name", PATHS)
class TestContinuousPaths:
    def test_levels_fall_from_exactly_clean(self, name):
        path = PATHS[name]
        level = path.level(np.linspace(0, path.end, 201)[:-1])
        if name != "from_log_snr":
            assert (level.alpha[0], level.sigma[0], level.log_snr[0]) == (1, 0, np.inf)
        assert (np.diff(level.log_snr) < 0).all()
        inner = level.log_snr[1:]
        np.testing.assert_allclose(inner, 2 * np.log(level.alpha[1:] / level.sigma[1:]), rtol=1e-9, atol=1e-12)

    def test_time_at_inverts_level(self, name):
        path = PATHS[name]
        t = np.linspace(0, path.end, 101)[1:]
        np.testing.assert_allclose(path.time_at(path.level(t).log_snr), t, rtol=1e-9)
        device = jax.jit(lambda t: path.time_at(path.level(t).log_snr))(jnp.asarray(t, jnp.float32))
        np.testing.assert_allclose(device, t, rtol=2e-4)
        if name != "from_log_snr":
            assert path.time_at(np.inf) == 0

    def test_numpy_gives_float64_and_jax_gives_float32(self, name):
        path = PATHS[name]
        t = np.linspace(0.01, 1, 50) * path.end
        host, device = path.level(t), path.level(jnp.asarray(t, jnp.float32))
        for column in ("alpha", "sigma", "log_snr"):
            assert getattr(host, column).dtype == np.float64
            assert getattr(device, column).dtype == jnp.float32
            wanted = getattr(path.level(np.asarray(jnp.asarray(t, jnp.float32), np.float64)), column)
            np.testing.assert_allclose(getattr(device, column), wanted, rtol=2e-5, atol=2e-5)


def test_every_path_has_its_papers_coefficients():
    t = np.array([0.25, 1.0])
    b = 0.1 * t + 19.9 * t**2 / 2
    np.testing.assert_allclose(PATHS["vp_linear"].level(t).sigma, np.sqrt(1 - np.exp(-b)), rtol=1e-12)
    np.testing.assert_allclose(PATHS["sub_vp_linear"].level(t).sigma, 1 - np.exp(-b), rtol=1e-12)
    np.testing.assert_allclose(PATHS["ve_geometric"].level(t).sigma, 0.02 * 5000**t, rtol=1e-12)
    assert PATHS["edm"].level(17.0)[:3] == (17.0, 1.0, 17.0)
    np.testing.assert_allclose(PATHS["flow"].level(t)[1:3], [1 - t, t], rtol=1e-12)
    np.testing.assert_allclose(PATHS["flow shifted"].level(t).sigma, 3 * t / (1 + 2 * t), rtol=1e-12)
    assert PATHS["flow"].level(1.0)[1:] == (0.0, 1.0, -np.inf)
    np.testing.assert_allclose(schedules.ve_ladder(3, 0.01, 1.0).level(np.arange(4)).sigma, [0, 0.01, 0.1, 1.0])
    assert PATHS["edm"].embed(PATHS["edm"].level(2.0)) == pytest.approx(np.log(2.0) / 4)
    assert PATHS["vp_linear"].embed(PATHS["vp_linear"].level(0.5)) == 499.5


def test_the_vp_path_is_near_but_not_the_ddpm_chain():
    t = np.arange(1, 1001)
    gap = np.abs(linear_beta().level(t).log_snr - schedules.vp_linear().level(t / 1000).log_snr)
    assert gap.max() == pytest.approx(0.095, abs=0.002)


def test_a_respaced_chain_has_the_old_levels_and_tells_the_network_the_old_times():
    times = np.array([1, 250, 500, 1000])
    short = schedules.respace(linear_beta(), times)
    assert short.num_steps == 4
    np.testing.assert_array_equal(short.level(np.arange(1, 5)).alpha, linear_beta().level(times).alpha)
    np.testing.assert_array_equal(short.embed(short.level(np.arange(1, 5))), times)
    np.testing.assert_array_equal(jax.jit(lambda t: short.embed(short.level(t)))(jnp.arange(1, 5)), times)


def test_zero_terminal_snr_is_the_published_rescaling():
    alpha = np.sqrt(laws.ddpm_tables(laws.linear_betas()).alpha_bar[1:])
    rescaled = schedules.zero_terminal_snr(linear_beta())
    expected = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    level = rescaled.level(np.arange(1, 1001))
    np.testing.assert_allclose(level.alpha, expected, atol=1e-12)
    np.testing.assert_allclose(level.alpha**2 + level.sigma**2, 1, atol=1e-12)
    assert (level.alpha[-1], level.sigma[-1], level.log_snr[-1]) == (0, 1, -np.inf)


def test_shifting_moves_the_log_snr_and_keeps_the_variance():
    old, new = schedules.vp_linear().level(0.3), PATHS["shifted"].level(0.3)
    assert new.log_snr == pytest.approx(old.log_snr - 2, rel=1e-12)
    assert new.alpha**2 + new.sigma**2 == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: from_betas((0.1, 1.0)), "beta_2 of 2 is 1, expected every beta strictly between 0 and 1"),
        (lambda: from_betas((0.0, 0.1)), "beta_1 of 2 is 0"),
        (lambda: from_betas((0.1, float("nan"))), "beta_2 of 2 is nan"),
        (lambda: from_betas(()), "at least one beta"),
        (lambda: linear_beta(num_steps=0), "got num_steps=0, expected at least 1"),
        (lambda: cosine_alpha_bar(num_steps=-5), "got num_steps=-5"),
        (lambda: linear_beta_scaled(num_steps=10), "beta_6 of 10 is 1.11556"),
        (lambda: schedules.sigmoid_alpha_bar(start=3.0, end=-3.0), "expected start < end"),
        (lambda: schedules.vp_linear(beta_min=2.0, beta_max=1.0), "expected 0 < beta_min < beta_max"),
        (lambda: schedules.flow(shift=0.0), "got shift=0.0, expected a positive number"),
        (lambda: schedules.vp_linear().level(-0.1), "expected numbers from 0"),
        (lambda: schedules.respace(linear_beta(), (5, 2000)), "expected rising integers in 1..1000"),
        (lambda: schedules.zero_terminal_snr(schedules.flow()), "needs a discrete chain"),
        (lambda: schedules.shift_log_snr(schedules.edm(), 1.0), "for variance-preserving schedules"),
        (lambda: linear_beta().level(1001), "expected integers in 0..1000"),
        (lambda: linear_beta().level(-1), "expected integers in 0..1000"),
        (lambda: linear_beta().level(0.5), "expected integers in 0..1000"),
    ],
)
def test_errors(make, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(").replace("..", r"\.\.")):
        make()
