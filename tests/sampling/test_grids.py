import numpy as np
import pytest

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
