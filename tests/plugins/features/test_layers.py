"""Layers against plain loops, and scipy where it has the same."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from scipy.signal import correlate

from diffenc_plugins.features import layers

RNG = np.random.default_rng(0)


def windows(maps, stride, pad, of):
    """`of` each 3x3, of what is there of it: nothing beyond the edges."""
    _, height, width, _ = maps.shape
    starts = [range(-pad, length + pad - 2, stride) for length in (height, width)]
    rows = [
        [of(maps[:, max(i, 0) : i + 3, max(j, 0) : j + 3], axis=(1, 2)) for j in starts[1]] for i in starts[0]
    ]
    return np.stack([np.stack(row, axis=1) for row in rows], axis=1)


@pytest.mark.parametrize("shape", [(2, 7, 9, 3), (1, 3, 3, 1), (1, 8, 5, 2)])
def test_pools(shape):
    maps = RNG.normal(size=shape).astype(np.float32) - 5  # zeros beyond the edge would show
    for ours, stride, pad, of in (
        (layers.max_pool, 2, 0, np.max),
        (layers.max_pool_same, 1, 1, np.max),
        (layers.mean_pool_same, 1, 1, np.mean),
    ):
        np.testing.assert_allclose(ours({}, jnp.asarray(maps)), windows(maps, stride, pad, of), rtol=1e-6)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (1, 7), (7, 1), (5, 5), (1, 3)])
def test_a_convolution_is_a_correlation_with_zeros_beyond_the_edge(kernel):
    maps, w, b = RNG.normal(size=(2, 9, 8, 3)), RNG.normal(size=(*kernel, 3, 4)), RNG.normal(size=4)
    weights = {"a": (jnp.asarray(w, jnp.float32), jnp.asarray(b, jnp.float32))}
    each = np.zeros((2, 9, 8, 4))
    for n, i, o in np.ndindex(2, 3, 4):
        each[n, ..., o] += correlate(maps[n, ..., i], w[..., i, o], mode="same", method="direct")
    found = layers.conv("a")(weights, jnp.asarray(maps, jnp.float32))
    np.testing.assert_allclose(found, np.maximum(each + b, 0), atol=1e-5)


@pytest.mark.parametrize(("size", "out"), [(32, 299), (28, 299), (8, 5), (400, 299), (3, 3), (1, 4)])
@pytest.mark.parametrize("name", ["centred_positions", "corner_positions"])
def test_resizing_is_linear_between_two_pixels_each_way(size, out, name):
    image = RNG.uniform(0, 255, (size, 6, 2)).astype(np.float32)
    each = np.arange(out)
    # a pixel's square goes from i to i + 1, or its corner is what counts
    rows = (each + 0.5) / out * size - 0.5 if name == "centred_positions" else each / out * size
    columns = (each + 0.5) / out * 6 - 0.5 if name == "centred_positions" else each / out * 6
    grid = np.meshgrid(rows, columns, indexing="ij")
    wanted = [map_coordinates(image[..., c].astype(float), grid, order=1, mode="nearest") for c in (0, 1)]
    found = layers.resize(jnp.asarray(image)[None], out, getattr(layers, name))
    np.testing.assert_allclose(found[0], np.stack(wanted, axis=-1), atol=2e-3)


def test_of_one_channel_three_are_made_and_three_stay():
    grey = RNG.integers(0, 256, (2, 3, 4, 1), dtype=np.uint8)
    found = np.asarray(layers.to_three_channels(jnp.asarray(grey)))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.repeat(grey, 3, axis=-1))
    colour = RNG.integers(0, 256, (2, 3, 4, 3), dtype=np.uint8)
    np.testing.assert_array_equal(layers.to_three_channels(jnp.asarray(colour)), colour)
