import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffenc import pixels


def test_scaled_pixels_by_hand():
    got = pixels.scale_pixels(jnp.asarray([[0, 127, 128, 255]], jnp.uint8), 256)
    np.testing.assert_array_equal(got, np.array([[-255, -1, 1, 255]], np.float32) / 256)
    assert got.dtype == jnp.float32


@pytest.mark.parametrize("num_levels", [2, 17, 256])
def test_every_level_comes_back(num_levels):
    levels = jnp.arange(num_levels)[:, None]
    back = pixels.nearest_levels(pixels.scale_pixels(levels, num_levels), num_levels)
    np.testing.assert_array_equal(back, levels)
    assert back.dtype == jnp.int32


@pytest.mark.parametrize("num_levels", [2, 17, 256])
def test_levels_divide_the_interval_evenly_and_stay_inside(num_levels):
    values = np.asarray(pixels.level_values(num_levels))
    edges = np.linspace(-1, 1, num_levels + 1)
    np.testing.assert_allclose(values, (edges[1:] + edges[:-1]) / 2, atol=1e-6)
    np.testing.assert_array_equal(
        values, pixels.scale_pixels(jnp.arange(num_levels)[:, None], num_levels)[:, 0]
    )


@given(x=st.floats(-3, 3, width=32), num_levels=st.sampled_from([2, 3, 16, 256]))
@settings(deadline=None, max_examples=100)
def test_no_level_lies_nearer(x, num_levels):
    level = int(pixels.nearest_levels(jnp.asarray([[x]], jnp.float32), num_levels)[0, 0])
    distances = np.abs((2 * np.arange(num_levels) + 1) / num_levels - 1 - np.float64(x))
    assert 0 <= level < num_levels
    assert distances[level] <= distances.min() + 1e-6
