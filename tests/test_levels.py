import jax
import numpy as np
import pytest

from diffusion import levels, lookup, schedules
from diffusion.schedules import linear_beta

SAMPLERS = lookup.components(levels, levels.LevelSampler)


UNIFORM = ("uniform", "stratified", "antithetic", "loss_second_moment")


@pytest.mark.parametrize("name", UNIFORM)
@pytest.mark.parametrize("num_steps", [1, 10])
def test_every_step_of_the_chain_is_drawn_equally_often(name, num_steps):
    draw = jax.jit(SAMPLERS[name](linear_beta(num_steps)), static_argnums=1)
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


def quantiles(sampler, of):
    draw = jax.jit(sampler, static_argnums=1)
    value = np.concatenate([of(draw(key, 500)) for key in jax.random.split(jax.random.key(0), 40)])
    assert np.isfinite(value).all()
    return np.quantile(value, [0.1, 0.5, 0.9])


@pytest.mark.parametrize("path", [schedules.vp_linear(), schedules.edm(), schedules.flow()], ids=["vp", "edm", "flow"])
@pytest.mark.parametrize("name", UNIFORM)
def test_times_of_a_path_are_uniform_and_never_clean(name, path):
    got = quantiles(SAMPLERS[name](path), lambda level: level.t / path.end)
    np.testing.assert_allclose(got, [0.1, 0.5, 0.9], atol=0.012)
    assert min(SAMPLERS[name](path)(jax.random.key(i), 64).sigma.min() for i in range(20)) > 0


@pytest.mark.parametrize(
    "schedule", [schedules.edm(), schedules.vp_linear(), linear_beta()], ids=["edm", "vp", "chain"]
)
def test_log_normal_is_normal_in_log_sigma(schedule):
    got = quantiles(levels.log_normal(schedule), lambda level: -level.log_snr / 2)
    np.testing.assert_allclose(got, -1.2 + 1.2 * np.array([-1.2816, 0, 1.2816]), atol=0.05)


def test_logit_normal_is_normal_in_the_logit_of_time():
    got = quantiles(levels.logit_normal(schedules.flow(), 0.5, 0.8), lambda level: np.log(level.t / (1 - level.t)))
    np.testing.assert_allclose(got, 0.5 + 0.8 * np.array([-1.2816, 0, 1.2816]), atol=0.04)


def test_antithetic_pairs_mirror_each_other():
    t = levels.antithetic(schedules.flow())(jax.random.key(0), 9).t
    np.testing.assert_allclose(t[:4] + t[5:], 1, atol=1e-6)


class TestLossSecondMoment:
    """Nichol & Dhariwal 2021, section 3.3."""

    LOSSES = np.array([8.0, 0.5, 2.0, 1.0, 0.25])
    SCHEDULE = linear_beta(5)

    def filled(self, history=3):
        sampler = levels.loss_second_moment(self.SCHEDULE, history=history)
        place = np.tile(np.arange(5), history)
        return sampler, sampler.update(sampler.init(), place, self.LOSSES[place].astype(np.float32))

    def test_levels_come_as_often_as_their_losses_are_large(self):
        sampler, memory = self.filled()
        t = np.asarray(sampler.draw(memory, jax.random.key(0), 100_000).level.t)
        share = 0.999 * self.LOSSES / self.LOSSES.sum() + 0.001 / 5
        tolerance = 5 * np.sqrt(share * (1 - share) / 100_000)
        assert (np.abs(np.bincount(t, minlength=6)[1:] / 100_000 - share) < tolerance).all()

    def test_the_expected_loss_stays_that_of_uniform_levels_and_its_variance_goes(self):
        sampler, memory = self.filled()
        level, importance, place = sampler.draw(memory, jax.random.key(1), 10_000)
        np.testing.assert_array_equal(level.t, place + 1)
        weighted = np.asarray(importance) * self.LOSSES[np.asarray(place)]
        assert weighted.mean() == pytest.approx(self.LOSSES.mean(), rel=1e-3)
        assert weighted.std() < 0.01, "losses that are always the same leave nothing to chance but the uniform share"
        other = np.asarray(importance) * np.cos(np.asarray(place))
        assert other.mean() == pytest.approx(np.cos(np.arange(5)).mean(), abs=5 * other.std() / 100)

    def test_it_remembers_the_last_losses_in_order_and_is_uniform_until_then(self):
        sampler, memory = levels.loss_second_moment(self.SCHEDULE, history=2), None
        lists = [[] for _ in range(5)]
        rng = np.random.default_rng(0)
        for _ in range(6):
            memory = sampler.init() if memory is None else memory
            _, importance, _ = sampler.draw(memory, jax.random.key(0), 64)
            full = all(len(last) == 2 for last in lists)
            assert (np.asarray(importance) == 1).all() != full
            place, losses = rng.integers(0, 5, 7), rng.random(7).astype(np.float32)
            for t, loss in zip(place, losses, strict=True):
                lists[t] = [*lists[t], loss][-2:]
            memory = sampler.update(memory, place, losses)
            for t, last in enumerate(lists):
                assert sorted(memory.losses[t][: len(last)].tolist()) == sorted(np.float32(last).tolist())
        assert full

    def test_a_path_is_cut_into_slices(self):
        sampler = levels.loss_second_moment(schedules.flow(), history=1, num_bins=4)
        memory = sampler.update(sampler.init(), np.arange(4), np.array([0.0, 0.0, 1.0, 0.0], np.float32))
        t = np.asarray(sampler.draw(memory, jax.random.key(0), 1000).level.t)
        inside = t[(t > 0.5) & (t <= 0.75)]
        assert len(inside) > 990
        np.testing.assert_allclose(np.quantile(inside, [0.1, 0.9]), [0.525, 0.725], atol=0.02)

    def test_errors(self):
        with pytest.raises(ValueError, match="got history=0"):
            levels.loss_second_moment(self.SCHEDULE, history=0)


def test_errors():
    with pytest.raises(ValueError, match=r"got std=0.0"):
        levels.log_normal(schedules.edm(), std=0.0)


def test_levels_are_those_of_the_schedule():
    schedule = linear_beta(20)
    level = levels.uniform(schedule)(jax.random.key(1), 8)
    np.testing.assert_allclose(level.alpha, schedule.level(np.asarray(level.t)).alpha, rtol=1e-7)
