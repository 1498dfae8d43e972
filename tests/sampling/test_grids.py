import numpy as np
import pytest

from diffusion import schedules
from diffusion.sampling import grids
from diffusion.schedules import cosine_alpha_bar, linear_beta


@pytest.mark.parametrize(
    ("spacing", "times"),
    [("trailing", [1000, 750, 500, 250]), ("leading", [751, 501, 251, 1]), ("linspace", [1000, 667, 334, 1])],
)
def test_spacings_visit_the_published_times(spacing, times):
    steps = grids.strided(linear_beta(), 4, spacing)
    np.testing.assert_array_equal(steps.now.t, times)
    np.testing.assert_array_equal(steps.to.t, [*times[1:], 0])


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 333, 999, 1000])
def test_every_number_of_steps_falls_strictly_to_clean_data(spacing, num_steps):
    steps = grids.strided(linear_beta(), num_steps, spacing)
    assert len(steps.h) == num_steps
    assert steps.now.t[0] <= 1000
    assert (steps.to.t[-1], steps.to.sigma[-1], steps.h[-1]) == (0, 0, np.inf)
    assert (steps.h > 0).all()
    if num_steps > 1 and spacing != "leading":
        assert steps.now.t[0] == 1000, "the first node is the noisiest"


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_all_steps_of_the_chain(spacing):
    whole, same = grids.all_steps(linear_beta()), grids.strided(linear_beta(), None, spacing)
    np.testing.assert_array_equal(whole.now.t, np.arange(1000, 0, -1))
    np.testing.assert_array_equal(whole.to.t, same.to.t)


def test_h_is_float64_exact():
    schedule = cosine_alpha_bar()
    steps = grids.all_steps(schedule)
    betas = 1 - (steps.now.alpha / steps.to.alpha) ** 2
    np.testing.assert_allclose(-np.expm1(-steps.h) * steps.now.sigma**2, betas, rtol=1e-9)
    assert steps.h.dtype == np.float64


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: grids.strided(linear_beta(), 0), "got num_steps=0, expected 1..1000"),
        (lambda: grids.strided(linear_beta(), 1001), "got num_steps=1001"),
        (lambda: grids.strided(linear_beta(), 5, "karras"), "spacing='karras', expected 'trailing'"),
        (lambda: grids.through(linear_beta(), (500, 500, 0)), "strictly falling"),
        (lambda: grids.through(linear_beta(), (0, 500)), "strictly falling"),
        (lambda: grids.through(linear_beta(), (0,)), "at least two"),
        (lambda: grids.through(linear_beta(), (1000, 500)), "the last being 0"),
    ],
)
def test_errors(make, words):
    with pytest.raises(ValueError, match=words):
        make()


EDM_GRID = (80, 57.586, 40.786, 28.375, 19.353, 12.910, 8.401, 5.315, 3.257)
EDM_GRID += (1.923, 1.088, 0.5853, 0.2964, 0.1395, 0.0599, 0.0229, 0.0075, 0.002)


def test_karras_is_the_published_grid_of_18_steps():
    steps = grids.karras(schedules.edm())
    np.testing.assert_allclose(steps.now.sigma, EDM_GRID, rtol=2e-3, atol=5e-5)
    assert steps.to.sigma[-1] == 0
    np.testing.assert_array_equal(steps.to.sigma[:-1], steps.now.sigma[1:])


@pytest.mark.parametrize("path", [schedules.edm(), schedules.vp_linear(), schedules.ve_geometric()])
def test_uniform_log_snr_is_even_from_the_noisiest_level(path):
    steps = grids.uniform_log_snr(path, 30, log_snr_max=7.0)
    assert steps.now.log_snr[0] == pytest.approx(path.level(path.end).log_snr)
    np.testing.assert_allclose(np.diff(steps.now.log_snr), steps.h[0], rtol=1e-9)
    assert steps.now.log_snr[-1] == pytest.approx(7)


@pytest.mark.parametrize("num_steps", [1, 7, 999, 1000])
def test_grids_by_log_snr_visit_as_many_levels_of_a_chain_as_asked(num_steps):
    for steps in (grids.karras(linear_beta(), num_steps, 0.02), grids.uniform_log_snr(linear_beta(), num_steps)):
        assert len(steps.h) == num_steps
        assert (np.diff(steps.now.t) < 0).all()
        assert (steps.now.t[0], steps.to.t[-1]) == (1000, 0)


def test_strided_is_even_in_the_time_of_a_path():
    np.testing.assert_allclose(grids.strided(schedules.edm(), 4).now.t, [80, 60, 40, 20])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: grids.karras(schedules.flow()), "give sigma_max, such as 80"),
        (lambda: grids.uniform_log_snr(schedules.flow()), "give log_snr_min, such as -10"),
        (lambda: grids.karras(schedules.ve_geometric()), "no level of log-SNR"),
        (lambda: grids.karras(linear_beta(), 1001, 0.02), "expected 1..1000"),
        (lambda: grids.strided(schedules.flow()), "a continuous path has no T"),
        (lambda: grids.strided(schedules.flow(), 5, "leading"), "has 'trailing' only"),
        (lambda: grids.all_steps(schedules.flow()), "grid.name=all_steps needs a discrete chain"),
        (lambda: grids.karras(schedules.edm(), 0), "got num_steps=0"),
    ],
)
def test_errors_of_paths(make, words):
    with pytest.raises(ValueError, match=words):
        make()
