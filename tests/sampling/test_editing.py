"""Laws of editing, driven by denoisers in closed form."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import gaussian, keys, sampling, schedules
from diffusion.sampling import ancestral, ddim, grids, replacement, resampled, strided
from diffusion.sampling.generate import _draw
from diffusion.sampling.loop import sample
from diffusion.sampling.sampler import Sampler
from diffusion.schedules import linear_beta, linear_beta_scaled
from diffusion.types import Prediction, SelfConditioned
from tests import laws
from tests.sampling.test_samplers import SAMPLERS, prepared, quickly

MEAN, STD = 0.3, 0.5
DENOISE = laws.gaussian_denoiser(MEAN, STD)
MASK = np.array([[True, False, True], [False, False, True]])


def images(n, shape=(2, 3, 2), seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (n, *shape)).astype(np.float32)


def walk(n, jump_length, num_resamples):
    """The levels, counted from clean data, that x is at one after the other, by single steps down and jumps up."""
    steps = resampled(strided(linear_beta(n), n), jump_length, num_resamples)
    levels = [int(steps.now.t[0])]
    for step in laws.rows(steps):
        assert step.now.t == levels[-1]
        levels.append(int(step.to.t))
        if step.back is not None and step.back.h > 0:
            levels.append(int(step.back.now.t))
    return levels


class TestResampling:
    def test_one_step_jumps_are_algorithm_1(self):
        """Each x_t, but for the clean one, is drawn U times, noised by one step in between."""
        assert walk(3, 1, 3) == [3, 2, 3, 2, 3, 2, 1, 2, 1, 2, 1, 0]
        assert walk(3, 1, 1) == [3, 2, 1, 0]

    def test_longer_jumps_are_the_papers(self):
        """Its list for 5 steps, jumps of 2 and 2 walks, worked out by hand: 4 3 2 (3) 4 3 2 1 0 (1) 2 1 0 -1 in the
        paper's count, which is one less than ours; the brackets are the middle of a jump of two."""
        assert walk(5, 2, 2) == [5, 4, 3, 5, 4, 3, 2, 1, 3, 2, 1, 0]

    def test_a_jump_goes_no_further_back_than_the_grid(self):
        assert walk(4, 3, 2) == [4, 3, 2, 1, 4, 3, 2, 1, 0]
        assert walk(6, 4, 2) == [6, 5, 4, 3, 2, 1, 5, 4, 3, 2, 1, 0]

    @pytest.mark.parametrize(("n", "jump_length", "num_resamples"), [(250, 10, 10), (100, 1, 5), (50, 49, 2)])
    def test_evaluations_are_counted(self, n, jump_length, num_resamples):
        jumps = len(range(0, n - jump_length, jump_length))
        steps = resampled(strided(linear_beta(), n), jump_length, num_resamples)
        assert len(steps.h) == n + jumps * jump_length * (num_resamples - 1)

    def test_noise_is_put_back_as_the_levels_say(self):
        steps = resampled(strided(linear_beta(), 50), 7, 3)
        scale, variance = gaussian.forward_kernel(steps.back)
        noisier = steps.back.h > 0
        assert noisier.sum() == 2 * len(range(0, 50 - 7, 7))
        after = np.append(steps.now.sigma[1:], 0.0)
        np.testing.assert_allclose(scale * steps.to.alpha, np.append(steps.now.alpha[1:], 1.0), rtol=1e-12)
        np.testing.assert_allclose(scale**2 * steps.to.sigma**2 + variance, after**2, rtol=1e-9, atol=1e-15)
        assert (variance[~noisier] == 0).all()

    def test_going_back_and_forth_keeps_the_distribution(self):
        steps = resampled(strided(linear_beta(), 60), 5, 3)
        x = sampling.generate(
            DENOISE, num_samples=20_000, shape=(1,), sampler=ancestral(), steps=steps, batch_size=20_000
        )
        assert x.mean() == pytest.approx(MEAN, abs=0.02)
        assert x.std() == pytest.approx(STD, abs=0.02)

    def test_a_sampler_starts_anew_where_noise_was_put_back(self):
        """A sampler that writes down how many steps it remembers."""
        counting = Sampler(lambda x: jnp.int32(0), lambda d, x, k, s, ks: (0 * x + k, k + 1), order=1, nfe=None)
        steps = resampled(strided(linear_beta(), 5), 2, 2)
        ids = keys.per_sample(jax.random.key(0), jnp.arange(2))
        _, path = sample(counting, DENOISE, jnp.ones((2, 1)), steps, ids, save_every=1)
        counted = np.asarray(path)[1:, 0, 0][np.asarray(steps.back.h) == 0]
        np.testing.assert_array_equal(counted, [0, 0, 1, 2, 0, 1, 2])

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"num_resamples": 0}, "got num_resamples=0"),
            ({"jump_length": 0}, r"got jump_length=0, expected 1..19"),
            ({"jump_length": 20}, r"got jump_length=20, expected 1..19"),
        ],
    )
    def test_errors(self, options, words):
        with pytest.raises(ValueError, match=words):
            resampled(strided(linear_beta(), 20), **options)


@pytest.mark.parametrize("name", quickly(SAMPLERS))
def test_hidden_pixels_never_reach_the_output_and_known_ones_are_kept(name):
    given = images(3)
    hidden = np.where(MASK[None, :, :, None], given, np.float32(np.nan))
    options = {"sampler": SAMPLERS[name], "steps": prepared(name, linear_beta(), 12), "jump_length": 3}
    drawn = [sampling.inpaint(DENOISE, x, MASK, num_resamples=2, **options) for x in (hidden, given)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(drawn[0][:, MASK], given[:, MASK])
    assert (drawn[0][:, ~MASK] != given[:, ~MASK]).all()


@pytest.mark.parametrize("name", ["ancestral", "dpmpp_2m", "unipc", "heun churn", "predictor_corrector"])
def test_where_pixels_are_independent_the_hidden_ones_are_the_datas(name):
    shape, n = (8, 8, 1), 200
    mask = np.random.default_rng(1).random((8, 8)) < 0.5
    given = np.full((n, *shape), 0.9, np.float32)
    steps = prepared(name, linear_beta_scaled(100), 100)
    x = sampling.inpaint(DENOISE, given, mask, sampler=SAMPLERS[name], steps=steps, batch_size=n)[:, ~mask]
    corrected = "correct" in name  # steps of a finite size, ruled by norms of the whole image
    assert x.mean() == pytest.approx(MEAN, abs=0.06 if corrected else 0.025)
    assert x.std() == pytest.approx(STD, rel=0.15 if corrected else 0.05)


class TestReplacement:
    def test_the_known_part_is_as_noisy_as_its_level_from_the_first_on(self):
        """alpha y + sigma z at every level, z fresh each time; without noise at level T the seams would be visible."""
        n, schedule = 4000, linear_beta_scaled(50)
        steps = strided(schedule, 10)
        given = np.full((n, 2, 3, 1), 0.8, np.float32)
        _, path = sampling.inpaint(DENOISE, given, MASK, sampler=ddim(), steps=steps, save_every=1, batch_size=n)
        known = path[..., MASK, 0]
        alphas, sigmas = np.append(steps.now.alpha, 1.0), np.append(steps.now.sigma, 0.0)
        np.testing.assert_allclose(known.mean((1, 2)), 0.8 * alphas, atol=0.03)
        np.testing.assert_allclose(known.std((1, 2)), sigmas, atol=0.03)
        noise = (known - 0.8 * alphas[:, None, None])[:-1].reshape(10, -1)
        assert np.abs(np.corrcoef(noise) - np.eye(10)).max() < 0.06
        np.testing.assert_array_equal(known[-1], np.float32(0.8))

    def test_resampling_comes_nearer_to_the_exact_conditional_of_a_correlated_gaussian(self):
        """x_2 given x_1 = 1 is N(rho, 1 - rho^2). Replacement alone leaves it too near to the unconditional one."""
        rho, n = 0.9, 3000
        denoise = laws.correlated_denoiser([0.0, 0.0], [[1, rho], [rho, 1]])
        given, mask = np.full((n, 1, 2, 1), 1.0, np.float32), np.array([[True, False]])
        how = {"sampler": ancestral(), "steps": strided(linear_beta_scaled(50), 50), "batch_size": n, "jump_length": 1}
        drawn = [sampling.inpaint(denoise, given, mask, num_resamples=r, **how)[:, 0, 1, 0] for r in (1, 4, 16)]
        far = [abs(x.mean() - rho) for x in drawn]
        assert 0.2 < far[0] < 0.4
        assert far[1] < far[0] / 2
        assert far[2] < min(0.05, far[1])
        wide = [abs(x.std() - np.sqrt(1 - rho**2)) for x in drawn]
        assert wide[2] < 0.04 < wide[1] < wide[0]

    @pytest.mark.parametrize(
        "known",
        [
            replacement.pixels(images(4, (4, 6, 3)), np.random.default_rng(0).random((4, 4, 6)) < 0.5),
            replacement.greys(images(4, (4, 6, 1))),
            replacement.block_means(images(4, (2, 3, 3)), 2),
        ],
        ids=["pixels", "greys", "blocks"],
    )
    def test_every_rule_is_an_orthogonal_projector_that_knows_its_images(self, known):
        x, y = images(4, (4, 6, 3), 1), images(4, (4, 6, 3), 2)
        part = lambda x: np.asarray(known.part(x, known.mask))
        np.testing.assert_allclose(part(part(x)), part(x), atol=1e-6)
        assert (part(x) * y).sum() == pytest.approx((x * part(y)).sum(), rel=1e-4)
        np.testing.assert_allclose(part(known.images), known.images, atol=1e-6)
        assert 0 < (part(x) ** 2).sum() < (x**2).sum()

    def test_colours_keep_their_grey_and_pixels_their_blocks(self):
        grey, low = images(5, (4, 4, 1)), images(5, (2, 2, 3))
        options = {"sampler": ancestral(), "steps": strided(linear_beta(), 30)}
        coloured = sampling.colourise(DENOISE, grey, **options)
        np.testing.assert_allclose(coloured.mean(-1, keepdims=True), grey, atol=1e-6)
        assert coloured.std(-1).mean() == pytest.approx(STD * np.sqrt(2 / 3), rel=0.2)
        large = sampling.super_resolve(DENOISE, low, 2, **options)
        np.testing.assert_allclose(large.reshape(5, 2, 2, 2, 2, 3).mean((2, 4)), low, atol=1e-6)
        assert large.reshape(5, 2, 2, 2, 2, 3).std((2, 4)).mean() == pytest.approx(STD * np.sqrt(3 / 4), rel=0.2)


class TestImageToImage:
    def test_it_is_the_flow_from_the_level_that_strength_says(self):
        """For Gaussian data the flow keeps (x - alpha mean) / std of the level."""
        schedule, given = linear_beta(), images(4)
        steps = strided(schedule, 500)
        for strength, t in ((0.3, 300), (1.0, 1000)):
            ours = sampling.image_to_image(DENOISE, given, strength=strength, sampler=ddim(), steps=steps, seed=7)
            level = schedule.level(t)
            x = level.alpha * given + level.sigma * sampling.noise(given.shape[1:], num_samples=4, seed=7)
            exact = MEAN + STD * (x - level.alpha * MEAN) / np.hypot(level.alpha * STD, level.sigma)
            np.testing.assert_allclose(ours, exact, atol=0.02)

    @pytest.mark.parametrize("strength", [0.0, 1.01, -1.0])
    def test_errors(self, strength):
        with pytest.raises(ValueError, match=r"share of the grid's steps in \(0, 1\]"):
            sampling.image_to_image(
                DENOISE, images(1), strength=strength, sampler=ddim(), steps=strided(linear_beta(), 10)
            )

    @pytest.mark.parametrize(("share", "count"), [(1.0, 10), (0.5, 5), (0.01, 1), (0.26, 3)])
    def test_the_last_part_of_a_grid(self, share, count):
        steps = strided(linear_beta(), 10)
        kept = grids.last(steps, share)
        np.testing.assert_array_equal(kept.now.t, steps.now.t[-count:])


class TestInterpolation:
    options: ClassVar = {"steps": strided(linear_beta(), 20), "seed": 3}

    def test_the_ends_are_the_samples_themselves(self):
        between = sampling.interpolate_noise(DENOISE, ids=(4, 9), num_samples=5, shape=(4, 4, 1), **self.options)
        ends = sampling.generate(DENOISE, shape=(4, 4, 1), sampler=ddim(), ids=[4, 9], **self.options)
        np.testing.assert_allclose(between[[0, -1]], ends, atol=1e-5)

    def test_slerp_walks_the_arc_evenly(self):
        a, b = np.array([2.0, 0.0], np.float32), np.array([0.0, 2.0], np.float32)
        for share in (0.0, 0.25, 1 / 3, 1.0):
            angle = share * np.pi / 2
            np.testing.assert_allclose(sampling.slerp(a, b, share), [2 * np.cos(angle), 2 * np.sin(angle)], atol=1e-6)
        np.testing.assert_allclose(sampling.slerp(a, a, 0.3), a)

    def test_images_are_mixed_under_the_same_noise(self):
        """With a deterministic sampler and a linear denoiser the result is a straight line between both ends."""
        first, second = images(2)
        options = {"strength": 0.5, "sampler": ddim(), **self.options}
        between = sampling.interpolate(DENOISE, first, second, num_samples=5, **options)
        one, two = (sampling.image_to_image(DENOISE, x[None], ids=[0], **options)[0] for x in (first, second))
        for share, x in zip(np.linspace(0, 1, 5), between, strict=True):
            np.testing.assert_allclose(x, (1 - share) * one + share * two, atol=1e-5)
        stochastic = sampling.interpolate(DENOISE, first, first, num_samples=3, sampler=ancestral(), **self.options)
        np.testing.assert_array_equal(stochastic[0], stochastic[2])


class TestInversion:
    @pytest.mark.parametrize(
        "steps",
        [
            strided(linear_beta(), 100),
            strided(schedules.flow(), 100),  # from pure noise
            grids.karras(schedules.edm(), 100, sigma_min=0.01),
        ],
        ids=["ddpm", "flow", "edm"],
    )
    def test_the_round_trip_is_exact_and_the_code_is_noise(self, steps):
        rng = np.random.default_rng(0)
        data = (MEAN + STD * rng.normal(size=(500, 4, 4, 1))).astype(np.float32)
        x_T = sampling.invert(DENOISE, data, iterations=12, steps=steps, batch_size=500)
        again = sampling.generate(DENOISE, shape=(4, 4, 1), x_T=x_T, sampler=ddim(), steps=steps, batch_size=500)
        np.testing.assert_allclose(again, data, atol=1e-4)
        level = laws.rows_of(steps.now, 0)
        code = (x_T - level.alpha * MEAN) / np.hypot(level.alpha * STD, level.sigma)
        assert code.mean() == pytest.approx(0, abs=0.04)
        assert code.std() == pytest.approx(1, abs=0.04)

    def test_the_code_is_where_the_exact_flow_comes_from(self):
        schedule, data = linear_beta(), images(3)
        x_T = sampling.invert(DENOISE, data, iterations=4, steps=strided(schedule, 1000))
        level = schedule.level(1000)
        exact = level.alpha * MEAN + np.hypot(level.alpha * STD, level.sigma) * (data - MEAN) / STD
        np.testing.assert_allclose(x_T, exact, atol=0.02)

    def test_more_iterations_come_nearer(self):
        data, steps = images(3), strided(linear_beta(), 20)
        errors = []
        for iterations in (1, 3, 9):
            x_T = sampling.invert(DENOISE, data, iterations=iterations, steps=steps)
            again = sampling.generate(DENOISE, shape=data.shape[1:], x_T=x_T, sampler=ddim(), steps=steps)
            errors.append(np.abs(again - data).max())
        assert errors[0] > 3 * errors[1] > 9 * errors[2]

    def test_errors(self):
        with pytest.raises(ValueError, match="got iterations=0"):
            sampling.invert(DENOISE, images(1), iterations=0, steps=strided(linear_beta(), 5))
        with pytest.raises(ValueError, match="cannot be undone"):
            sampling.invert(DENOISE, images(1), steps=strided(schedules.flow(), 1))


class TestGenerate:
    options: ClassVar = {"sampler": ancestral(), "steps": strided(linear_beta(), 8), "seed": 5}

    def test_an_edited_sample_depends_on_its_own_id_alone(self):
        given, start = images(20), images(20, seed=1)
        known = replacement.pixels(given, MASK)
        whole = sampling.generate(DENOISE, shape=(2, 3, 2), x_T=start, known=known, **self.options)
        other = {"x_T": start[16:], "known": replacement.pixels(given[16:], MASK), "ids": [16, 17, 18, 19]}
        few = sampling.generate(DENOISE, shape=(2, 3, 2), **other, **self.options)
        np.testing.assert_allclose(few, whole[16:], atol=1e-5)
        small = sampling.generate(DENOISE, shape=(2, 3, 2), x_T=start, known=known, batch_size=8, **self.options)
        np.testing.assert_allclose(small, whole, atol=1e-5)

    def test_noise_is_what_sampling_starts_from(self):
        _, path = sampling.generate(
            DENOISE,
            shape=(3,),
            num_samples=5,
            first_id=4,
            sampler=ddim(),
            steps=strided(linear_beta(), 8),
            save_every=8,
        )
        np.testing.assert_allclose(path[0], sampling.noise((3,), num_samples=5, first_id=4), rtol=1e-5)

    def test_the_same_edit_of_other_images_compiles_nothing(self):
        def edit(seed):
            return (
                sampling.inpaint(DENOISE, images(4, seed=seed), MASK, **self.options),
                sampling.colourise(DENOISE, images(4, (2, 3, 1), seed), **self.options),
                sampling.super_resolve(DENOISE, images(4, (1, 1, 2), seed), 2, **self.options),
                sampling.image_to_image(DENOISE, images(4, seed=seed), **self.options),
                sampling.invert(DENOISE, images(4, seed=seed), steps=self.options["steps"]),
            )

        edit(0)
        compiled = _draw._cache_size()
        edit(1)
        assert _draw._cache_size() == compiled

    def test_a_self_conditioned_denoiser_is_fed_its_estimates_here_too(self):
        """Estimates that add 1 to the one before count the evaluations."""
        model = SelfConditioned(lambda x_0_hat: lambda x, level: Prediction(x_0_hat + 1, jnp.ones_like(x)))
        steps = resampled(strided(linear_beta(), 6), 2, 3)
        ids = keys.per_sample(jax.random.key(0), jnp.arange(2))
        x = sample(ddim(), model, jnp.ones((2, 3)), steps, ids)
        np.testing.assert_allclose(x, len(steps.h), rtol=1e-6)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"x_T": np.zeros((3, 2)), "num_samples": 4}, "x_T has 3 rows, expected one for each of 4"),
            ({"x_T": np.zeros((3, 5))}, r"a row of x_T has the shape \(5,\), expected a sample's, \(2,\)"),
            ({"ids": [1, 2], "num_samples": 3}, "ids has 2 rows"),
            ({"x_T": np.full((3, 2), np.nan)}, "no finite numbers"),
            ({"x_T": np.full((3, 2), 200, np.uint8)}, "of type uint8"),
        ],
    )
    def test_errors(self, options, words):
        with pytest.raises(ValueError, match=words):
            sampling.generate(DENOISE, shape=(2,), **options, **self.options)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda **o: sampling.inpaint(DENOISE, images(2), np.ones((2, 3), bool), **o), "True everywhere"),
        (lambda **o: sampling.inpaint(DENOISE, images(2), np.zeros((2, 3), bool), **o), "False everywhere"),
        (lambda **o: sampling.inpaint(DENOISE, images(2), np.ones((3, 2), bool), **o), r"mask of shape \(3, 2\)"),
        (lambda **o: sampling.inpaint(DENOISE, np.nan * images(2), MASK, **o), "a known pixel of the images is NaN"),
        (lambda **o: sampling.super_resolve(DENOISE, images(2), 1, **o), "expected a factor of at least 2"),
        (
            lambda **o: sampling.inpaint(
                DENOISE, images(2), MASK, steps=o["steps"], sampler=dataclasses.replace(ddim(), nfe=None)
            ),
            "chooses its own levels",
        ),
        (
            lambda **o: sampling.interpolate(DENOISE, np.uint8(images(1)[0]), np.uint8(images(1)[0]), **o),
            "got images of type uint8",
        ),
    ],
)
def test_errors(edit, words):
    with pytest.raises(ValueError, match=words):
        edit(sampler=ddim(), steps=strided(linear_beta(), 5))
