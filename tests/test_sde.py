"""The SDE of each path, against its paper's coefficients and against the marginals that it must have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import schedules, sde
from diffusion.gaussian import score
from tests import laws

T = jnp.array([0.1, 0.5, 0.9])
BETA = 0.1 + 19.9 * np.asarray(T)
PATHS = {
    "vp": schedules.vp_linear(),
    "sub-vp": schedules.sub_vp_linear(),
    "ve": schedules.ve_geometric(),
    "edm": schedules.edm(sigma_max=1.0),
    "flow": schedules.flow(),
}
COEFFICIENTS = {  # f and g^2 of Song et al. 2020, eq. 32, 29, 30; Karras et al. 2022, eq. 1; straight lines
    "vp": (-BETA / 2, BETA),
    "sub-vp": (-BETA / 2, BETA * (1 - np.exp(-2 * (0.1 * np.asarray(T) + 19.9 * np.asarray(T) ** 2 / 2)))),
    "ve": (0 * BETA, 2 * np.log(5000) * (0.02 * 5000 ** np.asarray(T)) ** 2),
    "edm": (0 * BETA, 2 * np.asarray(T)),
    "flow": (-1 / (1 - np.asarray(T)), 2 * np.asarray(T) / (1 - np.asarray(T))),
}


@pytest.mark.parametrize("name", PATHS)
class TestEveryPath:
    def test_coefficients_are_the_papers(self, name):
        f, g = sde.forward_sde(PATHS[name], T)
        np.testing.assert_allclose(f, COEFFICIENTS[name][0], rtol=1e-4)
        np.testing.assert_allclose(g**2, COEFFICIENTS[name][1], rtol=1e-4)

    def test_moments_of_the_forward_sde_are_the_marginals(self, name):
        """d mean = f mean dt and d var = (2 f var + g^2) dt, at t = 1/2 by central differences."""
        path, t, step = PATHS[name], jnp.float32(0.5), 1e-3
        f, g = sde.forward_sde(path, t)
        low, high = path.level(0.5 - step), path.level(0.5 + step)
        middle = path.level(0.5)
        assert (high.alpha - low.alpha) / (2 * step) == pytest.approx(float(f) * middle.alpha, rel=1e-3, abs=1e-6)
        slope = (high.sigma**2 - low.sigma**2) / (2 * step)
        assert slope == pytest.approx(float(2 * f * middle.sigma**2 + g**2), rel=1e-3)

    def test_the_probability_flow_is_song_eq_13_and_carries_gaussian_data(self, name):
        path, denoise = PATHS[name], laws.gaussian_denoiser(0.3, 0.5)
        x, t = jnp.array([[-1.0], [0.2], [2.0]]), T
        level = path.level(t)
        f, g = sde.forward_sde(path, t)
        flow = sde.probability_flow(path, denoise)(x, t)
        expected = f[:, None] * x - (g**2)[:, None] * score(denoise(x, level).eps, level) / 2
        np.testing.assert_allclose(flow, expected, rtol=2e-3, atol=1e-3)

        def along(t):  # the exact flow through x: (x - alpha mean) / std stays
            here = path.level(t)
            return here.alpha * 0.3 + (here.alpha**2 * 0.25 + here.sigma**2) ** 0.5

        value, rate = jax.jvp(along, (jnp.float32(0.5),), (jnp.float32(1.0),))
        np.testing.assert_allclose(
            sde.probability_flow(path, denoise)(value[None, None], t[1:2])[0, 0], rate, rtol=1e-3
        )

    def test_the_reverse_sde_subtracts_the_whole_score_term(self, name):
        path, denoise = PATHS[name], laws.gaussian_denoiser(0.3, 0.5)
        x = jnp.array([[-1.0], [0.2], [2.0]])
        drift, g = sde.reverse_sde(path, denoise)(x, T)
        f, _ = sde.forward_sde(path, T)
        half = sde.probability_flow(path, denoise)(x, T)
        np.testing.assert_allclose(drift, 2 * half - f[:, None] * x, rtol=3e-3, atol=2e-3)
        assert (g > 0).all()


def test_the_flow_is_finite_at_pure_noise():
    denoise = laws.gaussian_denoiser(0.3, 0.5)
    x = jnp.array([[1.5]])
    np.testing.assert_allclose(sde.probability_flow(schedules.flow(), denoise)(x, jnp.ones(1)), x - 0.3, rtol=1e-5)


def test_a_chain_is_refused():
    with pytest.raises(ValueError, match="a discrete chain is no SDE"):
        sde.forward_sde(schedules.linear_beta(), jnp.array(0.5))


def test_marginals():
    mean, std = sde.marginal(schedules.flow(), jnp.ones((1, 2)), jnp.array([0.25]))
    np.testing.assert_allclose(mean, 0.75 * np.ones((1, 2)))
    np.testing.assert_allclose(std, [0.25])
