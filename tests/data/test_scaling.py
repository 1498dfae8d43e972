"""Laws of scaling: the ends are exact, the map is affine, and 8-bit images survive the round trip."""

import numpy as np
import pytest

from diffusion.data.scaling import to_uint8, to_unit_range

ALL = np.arange(256, dtype=np.uint8)


def test_known_values():
    assert to_unit_range(np.array([0, 51, 102, 255], np.uint8)) == pytest.approx([-1, -0.6, -0.2, 1], abs=1e-7)
    digits = to_unit_range(np.arange(17, dtype=np.uint8), 17)
    np.testing.assert_array_equal(digits, np.arange(-8, 9) / np.float32(8))
    np.testing.assert_array_equal(to_unit_range(np.array([0, 1], np.uint8), 2), np.array([-1, 1], np.float32))


@pytest.mark.parametrize("num_values", [2, 3, 17, 100, 255, 256])
def test_ends_are_exact_and_steps_equal(num_values):
    x = to_unit_range(np.arange(num_values, dtype=np.uint8), num_values)
    assert x.dtype == np.float32
    assert (x[0], x[-1]) == (-1, 1)
    np.testing.assert_allclose(x, np.linspace(-1, 1, num_values), atol=1e-7)


def test_round_trip_of_8_bits_is_exact():
    np.testing.assert_array_equal(to_uint8(to_unit_range(ALL)), ALL)
    np.testing.assert_array_equal(to_uint8(to_unit_range(ALL).astype(np.float64)), ALL)


def test_to_uint8_rounds_to_the_nearest_and_clips():
    step = 2 / 255
    x = to_unit_range(ALL)[1:-1]
    for shift in (-0.49, -0.25, 0.25, 0.49):
        np.testing.assert_array_equal(to_uint8(x + np.float32(shift * step)), ALL[1:-1])
    np.testing.assert_array_equal(to_uint8(np.array([-7.0, -1.001, 1.001, 1e30])), [0, 0, 255, 255])
    assert to_uint8(np.zeros((2, 3), np.float32)).tolist() == [[128] * 3] * 2  # 127.5, to even


def test_input_is_left_alone():
    image, x = ALL.copy(), np.array([-3.0, 3.0])
    to_unit_range(image)
    to_uint8(x)
    np.testing.assert_array_equal(image, ALL)
    np.testing.assert_array_equal(x, [-3, 3])


def test_errors():
    with pytest.raises(ValueError, match=r"intensity of 17 .* num_values=17 allows 0\.\.16"):
        to_unit_range(np.array([3, 17], np.uint8), 17)
    with pytest.raises(ValueError, match="num_values is 1;"):
        to_unit_range(ALL, 1)
    with pytest.raises(ValueError, match="2 of 4 values are NaN or infinite"):
        to_uint8(np.array([0, np.nan, -np.inf, 1]))
