import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import guidance
from diffusion.gaussian import diffuse
from diffusion.schedules import linear_beta
from diffusion.types import Prediction

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


@pytest.mark.parametrize("make", [lambda: guidance.clip(1.0, -1.0), lambda: guidance.dynamic(percentile=1.5)])
def test_errors(make):
    with pytest.raises(ValueError, match="expected"):
        make()
