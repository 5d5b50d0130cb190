from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from diffenc.core import pixels


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


def log_partition_by_numpy(x, half_snr, num_levels):
    """The sum and its two derivatives, level by level in float64."""
    gap = x[..., None] - ((2 * np.arange(num_levels) + 1) / num_levels - 1)
    exponents = -half_snr[:, None, None] * gap**2
    log_sum = np.asarray(logsumexp(exponents, axis=-1))
    weights = np.exp(exponents - log_sum[..., None])
    return log_sum, -2 * half_snr[:, None] * (weights * gap).sum(-1), -(weights * gap**2).sum(-1)


@pytest.mark.thin
@pytest.mark.parametrize("num_levels", [2, 5, 256])
@pytest.mark.parametrize("log_snr", [-5.0, 4.0, 13.3])
def test_log_partition_and_its_derivatives(num_levels, log_snr):
    x = np.random.default_rng(0).uniform(-1.2, 1.2, (3, 50))
    half_snr = 0.5 * np.exp(log_snr + np.array([0.0, 0.1, -0.3]))
    summed, by_x, by_half_snr = log_partition_by_numpy(x, half_snr, num_levels)
    with jax.enable_x64(True):
        arguments = jnp.asarray(x), jnp.asarray(half_snr)
        f = partial(pixels.log_partition, num_levels=num_levels)
        np.testing.assert_allclose(f(*arguments), summed, rtol=1e-9, atol=1e-9)
        total = jax.grad(lambda *a: f(*a).sum(), argnums=(0, 1))(*arguments)
        np.testing.assert_allclose(total[0], by_x, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(total[1], by_half_snr.sum(axis=1), rtol=1e-7)


def test_log_partition_in_float32_where_the_noise_is_small():
    """At log_snr 13.3 the exponents reach -1e6; only those near the pixel count, and their digits are kept."""
    x = (np.random.default_rng(1).normal(scale=0.01, size=(2, 200)) + 0.3).astype(np.float32)
    half_snr = np.full(2, 0.5 * np.exp(13.3))
    want = log_partition_by_numpy(x.astype(np.float64), half_snr, 256)[0]
    got = pixels.log_partition(jnp.asarray(x), jnp.asarray(half_snr, jnp.float32), 256)
    np.testing.assert_allclose(got, want, atol=2e-4)


def test_log_partition_makes_no_array_with_an_axis_of_levels():
    shape, num_levels = (8, 16, 16, 3), 256

    def total(x, half_snr):
        return pixels.log_partition(x, half_snr, num_levels).sum()

    arguments = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:1], jnp.float32)
    memory = jax.jit(jax.grad(total, argnums=(0, 1))).lower(*arguments).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 0.1 * np.prod(shape) * num_levels * 4
