"""What fixed convolutional networks are put together from.

A layer takes the weights of the whole network, by name, and maps [B, H, W, C]. Convolutions look their weights up by
name; how many channels there are is the weights' affair. Everything is computed in full float32, on every device.
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
    """A convolution with the weights of `name`, a bias and a ReLU."""

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
    """One layer after the other."""

    def apply(weights: Weights, maps: Maps) -> Maps:
        for layer in layers:
            maps = layer(weights, maps)
        return maps

    return apply


def concatenate(*layers: Layer) -> Layer:
    """All layers on the same maps, their results side by side as channels."""
    return lambda weights, maps: jnp.concatenate([layer(weights, maps) for layer in layers], axis=-1)


def max_pool(weights: Weights, maps: Maps, stride: int = 2, padding: str = "VALID") -> Maps:
    """The largest of each 3x3; beyond the edge there is nothing."""
    del weights
    return lax.reduce_window(maps, -jnp.inf, lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def max_pool_same(weights: Weights, maps: Maps) -> Maps:
    """The largest of the 3x3 around each place."""
    return max_pool(weights, maps, 1, "SAME")


def mean_pool_same(weights: Weights, maps: Maps) -> Maps:
    """The mean of the 3x3 around each place, of those that there are: what is beyond the edge does not count."""
    del weights

    def sums(of: Maps) -> Maps:
        return lax.reduce_window(of, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")

    # The second sum counts the places of each window within the map: 9 inside, 6 at an edge, 4 in a corner.
    return sums(maps) / sums(jnp.ones((1, *maps.shape[1:3], 1), maps.dtype))


def global_mean(maps: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
    """The mean over all places."""
    return maps.mean(axis=(1, 2))


def to_three_channels(images: UInt8[Array, "b h w c"]) -> Float[Array, "b h w 3"]:
    """0 .. 255 as float32; one channel is taken three times."""
    return jnp.broadcast_to(images.astype(jnp.float32), (*images.shape[:3], 3))


def centred_positions(size: int, out: int) -> Float[np.ndarray, " out"]:
    """Where in `size` pixels the centres of `out` pixels lie that cover the same square (align_corners=False)."""
    return (np.arange(out) + 0.5) * size / out - 0.5


def corner_positions(size: int, out: int) -> Float[np.ndarray, " out"]:
    """The same as TensorFlow 1 has it: the first pixels coincide, not the squares."""
    return np.arange(out) * size / out


def resize(
    images: Float[Array, "b h w c"],
    size: int,
    places: Callable[[int, int], Float[np.ndarray, " out"]] = centred_positions,
) -> Float[Array, "b size size c"]:
    """Bilinear between the two nearest pixels each way, the outermost going on beyond the edge; no smoothing."""
    rows, columns = (
        jnp.asarray(interpolation_matrix(length, places(length, size))) for length in images.shape[1:3]
    )
    return jnp.einsum("ph,bhwc,qw->bpqc", rows, images, columns, precision=lax.Precision.HIGHEST)


def interpolation_matrix(size: int, places: Float[np.ndarray, " out"]) -> Float[np.ndarray, "out size"]:
    """The matrix that takes values at 0 .. size - 1 to those at `places`, linearly."""
    # Weights max(0, 1 - distance) are the bilinear ones;
    # clipping repeats the outermost pixels beyond the edge.
    places = np.clip(places, 0, size - 1)
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(size))).astype(np.float32)
