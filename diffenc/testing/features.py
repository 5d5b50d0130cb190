"""Conformance checks of features. Weights that are read from a file must have been downloaded."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffenc.testing.assertions import require, require_close, require_finite, require_like
from diffenc.testing.make_inputs import cached_per_plugin, quick_jit


def metric_and_identity_are_valid(plugin: Any) -> None:
    """Requires an identifier other than "fid" as metric, and a constant identity of one line."""
    metric = plugin.metric()
    require(metric.isidentifier(), plugin, f"metric() = {metric!r}: must be an identifier")
    published = metric != "fid" or type(plugin).__module__.startswith("diffenc_plugins.")
    require(published, plugin, 'metric() = "fid": reserved for Inception, choose another name')
    identity = plugin.identity()
    valid = (
        isinstance(identity, str)
        and bool(identity)
        and "\n" not in identity
        and identity == plugin.identity()
    )
    require(valid, plugin, f"identity() = {identity!r}: must be one line, the same at every call")


@cached_per_plugin(plugins=4)
def _loaded(plugin: Any) -> Any:
    return plugin.load()


_apply = quick_jit(lambda loaded, images: loaded(images))


def _extract(plugin: Any, images: np.ndarray) -> np.ndarray:
    return np.asarray(_apply(_loaded(plugin), jnp.asarray(images)))


def _images(channels: int = 1) -> np.ndarray:
    # not square, so that swapped axes show
    return np.random.default_rng(0).integers(0, 256, (3, 12, 10, channels), dtype=np.uint8)


def features_are_float32_of_declared_size(plugin: Any) -> None:
    """Requires finite float32 [N, num_features] of grey and coloured images, also with float64 enabled."""
    for channels, x64 in ((1, False), (3, True)):
        with jax.enable_x64(x64):
            found = _extract(plugin, _images(channels))
        require_like(found, np.zeros((3, plugin.num_features), np.float32), plugin, "features of 3 images")
        require_finite(found, plugin, "features")


def features_ignore_other_images(plugin: Any) -> None:
    """Requires features that depend on their own image and on no other image of the batch."""
    images = _images()
    found = _extract(plugin, images)
    scale = float(np.abs(found).max())
    reversed_ = _extract(plugin, images[::-1])[::-1]
    require_close(
        reversed_, found, plugin, "the order of the batch changes an image's features", 0.0, 1e-4 * scale
    )
    require(np.abs(found[0] - found[1]).max() > 1e-3 * scale, plugin, "two images have the same features")


def grey_images_equal_three_equal_channels(plugin: Any) -> None:
    """Requires the features of one channel to equal those of three equal channels."""
    grey, images = _extract(plugin, _images()), np.repeat(_images(), 3, axis=-1)
    scale = float(np.abs(grey).max())
    require_close(
        _extract(plugin, images), grey, plugin, "three equal channels differ from one", 0.0, 1e-4 * scale
    )


def weights_are_a_pytree(plugin: Any) -> None:
    """Requires `load` to return a pytree of arrays: weights closed over as constants would take minutes to compile."""
    leaves = jax.tree.leaves(_loaded(plugin))
    arrays = all(isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves)
    require(leaves and arrays, plugin, "load() returns no pytree of its weights: use jax.tree_util.Partial")


CHECKS = (
    metric_and_identity_are_valid,
    weights_are_a_pytree,
    features_are_float32_of_declared_size,
    features_ignore_other_images,
    grey_images_equal_three_equal_channels,
)
