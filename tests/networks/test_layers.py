import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.networks import layers
from diffusion.networks.layers import GroupNorm
from tests.laws import normal, value_and_gradients


def test_a_mask_drawn_as_one_row_is_the_mask_of_flax():
    x, dropout, rngs = normal(0, 3, 4, 6, 5), nn.Dropout(0.3, deterministic=False), {"dropout": jax.random.key(1)}
    got = nn.apply(layers.dropped, dropout)({}, x, rngs=rngs)
    np.testing.assert_array_equal(got, dropout.apply({}, x, rngs=rngs))
    assert 0.1 < np.mean(got == 0) < 0.5


@pytest.mark.parametrize("channels", [6, 32, 96])
def test_group_norm_equals_flax_in_value_and_gradient(channels):
    x, g = 3 * normal(0, 2, 4, 6, channels) + 1, normal(1, 2, 4, 6, channels)
    params = {"scale": normal(2, channels), "bias": normal(3, channels)}
    own = value_and_gradients(lambda p, x: GroupNorm(jnp.float32).apply({"params": p}, x), g, params, x)
    reference = nn.GroupNorm(layers.num_groups(channels), epsilon=1e-6)
    theirs = value_and_gradients(lambda p, x: reference.apply({"params": p}, x), g, params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), own, theirs)


def test_group_norm_keeps_its_statistics_in_float32():
    x = (100 + normal(0, 1, 16, 16, 32)).astype(jnp.bfloat16)
    y, _ = GroupNorm(jnp.bfloat16).init_with_output(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    group = np.asarray(y, np.float32)[0, :, :, : 32 // layers.num_groups(32)]
    assert abs(group.mean()) < 0.01
    assert abs(group.std() - 1) < 0.01
