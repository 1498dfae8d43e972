import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import learned_schedules, lookup, sampling
from diffusion.learned_schedules import LearnedSchedule, for_less_variance
from diffusion.types import float32
from tests import laws

COMPONENTS = lookup.components(learned_schedules, LearnedSchedule)


def moved(params, scale=1.0):
    """Parameters far from the first ones, as after a training."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + scale * rng.normal(size=leaf.shape), params)


@pytest.mark.parametrize("name", COMPONENTS)
class TestEveryOne:
    def test_it_falls_from_one_learned_end_to_the_other(self, name):
        learned = COMPONENTS[name]()
        for params in (learned.init(), moved(learned.init(), 3.0)):
            ends, level = params["ends"], learned.at(params).level(np.linspace(0, 1, 1001))
            assert (level.alpha[0], level.sigma[0], level.log_snr[0]) == (1, 0, np.inf)
            assert (np.diff(level.log_snr) < 0).all()
            assert learned.at(params).level(1e-300).log_snr == pytest.approx(ends["log_snr_max"], abs=1e-9)
            assert level.log_snr[-1] == pytest.approx(ends["log_snr_min"], abs=1e-9)
            np.testing.assert_allclose(level.alpha**2 + level.sigma**2, 1, atol=1e-14)

    def test_time_at_inverts_level(self, name):
        path = COMPONENTS[name]().at(moved(COMPONENTS[name]().init()))
        t = np.linspace(0, 1, 51)
        np.testing.assert_allclose(path.time_at(path.level(t).log_snr), t, atol=1e-11)
        device = jax.jit(lambda t: path.time_at(path.level(t).log_snr))(jnp.asarray(t, jnp.float32))
        np.testing.assert_allclose(device, t, atol=2e-5)

    def test_a_host_tree_gives_float64_and_a_device_tree_float32(self, name):
        learned = COMPONENTS[name]()
        params = moved(learned.init())
        t = np.linspace(0.01, 1, 50)
        host, on_device = learned.at(params), learned.at(float32(params))
        assert host.level(t).log_snr.dtype == np.float64
        for level in (host.level(jnp.float32(t)), on_device.level(t), jax.jit(on_device.level)(t)):
            for column in ("alpha", "sigma", "log_snr"):
                assert getattr(level, column).dtype == jnp.float32
                np.testing.assert_allclose(getattr(level, column), getattr(host.level(t), column), rtol=3e-5, atol=3e-5)

    def test_the_rate_is_the_slope_of_the_log_snr(self, name):
        learned = COMPONENTS[name]()
        params = moved(learned.init())
        t = np.linspace(0.05, 0.95, 20)
        near = [learned.at(params).level(t + h).log_snr for h in (-1e-5, 1e-5)]
        trained, times = float32(params), jnp.asarray(t, jnp.float32)
        level, rate = learned.level(trained["ends"], times, learned.place(trained["shape"], times))
        np.testing.assert_allclose(rate, (near[0] - near[1]) / 2e-5, rtol=1e-4)
        np.testing.assert_allclose(level.log_snr, learned.at(params).level(t).log_snr, rtol=1e-4, atol=1e-4)

    def test_samplers_walk_it(self, name):
        """The exact denoiser of one point ends there."""
        path = COMPONENTS[name]().at(COMPONENTS[name]().init())
        found = sampling.generate(
            laws.perfect_denoiser(jnp.float32(0.25)), shape=(3,), num_samples=2, steps=sampling.strided(path, 10),
            sampler=sampling.ddim(),
        )  # fmt: skip
        np.testing.assert_allclose(found, 0.25, atol=1e-6)

    def test_a_network_is_told_of_the_log_snr_alone(self, name):
        learned = COMPONENTS[name]()
        level = learned.at(learned.init()).level(np.array([1e-12, 1.0]))
        np.testing.assert_allclose(learned.embed(level), [0, 1000], atol=1e-6)
        other = learned.at(moved(learned.init())).level(np.array([0.5]))
        told = learned.embed(other._replace(t=None, alpha=None, sigma=None))
        np.testing.assert_array_equal(told, learned.embed(other))


def test_one_backward_pass_gives_the_model_its_gradient_and_the_shape_that_of_half_the_squares():
    def losses(model, place):
        u, slope = place
        return slope * jnp.square(jnp.sin(model["a"] * u) + model["b"]) + u

    def place(shape):
        return jnp.exp(shape) * t, jnp.exp(shape) * jnp.ones_like(t)

    t, model, shape = jnp.linspace(0.1, 1, 5), {"a": jnp.float32(0.7), "b": jnp.float32(-0.2)}, jnp.float32(0.4)
    got = jax.jit(jax.grad(lambda m, s: for_less_variance(losses)(m, place(s)).mean(), (0, 1)))(model, shape)
    of_model = jax.grad(lambda m: losses(m, place(shape)).mean())(model)

    of_shape = jax.grad(lambda s: jnp.square(losses(model, place(s))).mean() / 2)(shape)
    np.testing.assert_allclose(got[1], of_shape, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got[0], of_model)
    np.testing.assert_array_equal(for_less_variance(losses)(model, place(shape)), losses(model, place(shape)))


@pytest.mark.parametrize("options", [{"log_snr_max": -6.0}, {"hidden": 0}])
def test_errors(options):
    with pytest.raises(ValueError, match="expected log_snr_min < log_snr_max and hidden >= 1"):
        learned_schedules.learned_log_snr(**options)
