import jax
import numpy as np
import pytest

from diffusion import keys


@pytest.mark.parametrize("shape", [(3, 5, 4, 3), (2, 7), (6,), ()])
def test_noise_is_that_of_jax_bit_for_bit(shape):
    key = jax.random.key(3)
    np.testing.assert_array_equal(jax.jit(keys.noise, static_argnums=1)(key, shape), jax.random.normal(key, shape))


def test_a_samples_noise_is_that_of_its_own_key():
    each = keys.per_sample(jax.random.key(3), jax.numpy.arange(4))
    rows = keys.normal(each, (5, 4, 3))
    for key, row in zip(each, rows, strict=True):
        np.testing.assert_array_equal(row, jax.random.normal(key, (5, 4, 3)))
