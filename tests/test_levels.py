import jax
import numpy as np
import pytest

from diffusion import levels, lookup
from diffusion.schedules import linear_beta

SAMPLERS = lookup.components(levels, levels.LevelSampler)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("num_steps", [1, 10])
def test_every_step_of_the_chain_is_drawn_equally_often(name, num_steps):
    draw = SAMPLERS[name](linear_beta(num_steps))
    t = np.concatenate([draw(key, 500).t for key in jax.random.split(jax.random.key(0), 200)])
    counts = np.bincount(t, minlength=num_steps + 1)
    assert counts[0] == 0
    assert len(counts) == num_steps + 1
    np.testing.assert_allclose(counts[1:], 100_000 / num_steps, atol=5 * np.sqrt(100_000 / num_steps))


def test_stratified_batches_hold_every_step_once():
    draw = levels.stratified(linear_beta(64))
    np.testing.assert_array_equal(np.sort(draw(jax.random.key(3), 64).t), np.arange(1, 65))
    means = [draw(key, 16).t.mean() for key in jax.random.split(jax.random.key(0), 100)]
    assert np.std(means) < 64 / np.sqrt(12) / 16 / 2, "independent draws would give 64 / sqrt(12 * 16)"


def test_levels_are_those_of_the_schedule():
    schedule = linear_beta(20)
    level = levels.uniform(schedule)(jax.random.key(1), 8)
    np.testing.assert_allclose(level.alpha, schedule.level(np.asarray(level.t)).alpha, rtol=1e-7)
