"""Layers of fixed convolutional networks.

A layer takes the weights of the whole network, by name, and maps [B, H, W, C]. Convolutions look up their weights by
name; the weights determine the numbers of channels. Everything is computed in full float32, on every device.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt8

Maps = Float[Array, "_ _ _ _"]  # what goes in and what comes out differ in shape
Weights = Mapping[str, tuple[Array, Array]]  # by name: a kernel [height, width, in, out], a bias [out]
Layer = Callable[[Weights, Maps], Maps]


def conv(name: str, stride: int = 1, padding: str = "SAME") -> Layer:
    """Returns a convolution with the weights of `name`, followed by bias and ReLU."""

    def apply(weights: Weights, maps: Maps) -> Maps:
        kernel, bias = weights[name]
        out = lax.conv_general_dilated(
            maps,
            kernel,
            (stride, stride),
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=lax.Precision.HIGHEST,
        )
        return jax.nn.relu(out + bias[None, None, None])

    return apply


def chain(*layers: Layer) -> Layer:
    """Returns the layers in sequence as one layer."""

    def apply(weights: Weights, maps: Maps) -> Maps:
        for layer in layers:
            maps = layer(weights, maps)
        return maps

    return apply


def concatenate(*layers: Layer) -> Layer:
    """Returns a layer that applies all `layers` to the same maps and concatenates their outputs as channels."""
    return lambda weights, maps: jnp.concatenate([layer(weights, maps) for layer in layers], axis=-1)


def max_pool(weights: Weights, maps: Maps, stride: int = 2, padding: str = "VALID") -> Maps:
    """Applies 3x3 max pooling; positions beyond the edge do not count."""
    del weights
    return lax.reduce_window(maps, -jnp.inf, lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def max_pool_same(weights: Weights, maps: Maps) -> Maps:
    """Applies 3x3 max pooling of stride 1, with outputs of the same size."""
    return max_pool(weights, maps, 1, "SAME")


def mean_pool_same(weights: Weights, maps: Maps) -> Maps:
    """Applies 3x3 mean pooling of stride 1, with outputs of the same size; positions beyond the edge do not count."""
    del weights

    def sums(of: Maps) -> Maps:
        return lax.reduce_window(of, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")

    # The second sum counts each window's positions within the map: 9 inside, 6 at an edge, 4 in a corner.
    return sums(maps) / sums(jnp.ones((1, *maps.shape[1:3], 1), maps.dtype))


def global_mean(maps: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
    """Returns the mean over all positions."""
    return maps.mean(axis=(1, 2))


def to_three_channels(images: UInt8[Array, "b h w c"]) -> Float[Array, "b h w 3"]:
    """Returns 0 .. 255 as float32; a single channel is repeated three times."""
    return jnp.broadcast_to(images.astype(jnp.float32), (*images.shape[:3], 3))


def centred_positions(size: int, out: int) -> Float[np.ndarray, " out"]:
    """Returns the centres of `out` pixels that cover the same square, in coordinates of `size` pixels (align_corners=False)."""
    return (np.arange(out) + 0.5) * size / out - 0.5


def corner_positions(size: int, out: int) -> Float[np.ndarray, " out"]:
    """Returns the positions of TensorFlow 1's resize: the first pixels coincide, not the squares."""
    return np.arange(out) * size / out


def resize(
    images: Float[Array, "b h w c"],
    size: int,
    places: Callable[[int, int], Float[np.ndarray, " out"]] = centred_positions,
) -> Float[Array, "b size size c"]:
    """Resizes by bilinear interpolation without antialiasing; the outermost pixels continue beyond the edge."""
    rows, columns = (
        jnp.asarray(interpolation_matrix(length, places(length, size))) for length in images.shape[1:3]
    )
    return jnp.einsum("ph,bhwc,qw->bpqc", rows, images, columns, precision=lax.Precision.HIGHEST)


def interpolation_matrix(size: int, places: Float[np.ndarray, " out"]) -> Float[np.ndarray, "out size"]:
    """Returns the matrix that interpolates values at 0 .. size - 1 linearly at `places`."""
    # Weights max(0, 1 - distance) are the bilinear ones;
    # clipping repeats the outermost pixels beyond the edge.
    places = np.clip(places, 0, size - 1)
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(size))).astype(np.float32)
