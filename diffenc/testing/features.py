"""What all features keep. Their weights, if they lie in a file, must be there."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffenc.testing.assertions import require, require_close, require_finite, require_like
from diffenc.testing.make_inputs import kept, quick


def names_tell_them_from_others(plugin: Any) -> None:
    """The distance's, which is not "fid", and an identity of a line, the same each time."""
    metric = plugin.metric()
    require(metric.isidentifier(), plugin, f"metric() = {metric!r}: must be an identifier")
    published = metric != "fid" or type(plugin).__module__.startswith("diffenc_plugins.")
    require(published, plugin, 'metric() = "fid": that is Inception\'s alone')
    identity = plugin.identity()
    told = (
        isinstance(identity, str)
        and bool(identity)
        and "\n" not in identity
        and identity == plugin.identity()
    )
    require(told, plugin, f"identity() = {identity!r}: must be a line, the same each time")


@kept(plugins=4)
def _loaded(plugin: Any) -> Any:
    return plugin.load()


_apply = quick(lambda loaded, images: loaded(images))


def _extract(plugin: Any, images: np.ndarray) -> np.ndarray:
    return np.asarray(_apply(_loaded(plugin), jnp.asarray(images)))


def _images(channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 12, 10, channels), dtype=np.uint8)


def they_are_float32_and_num_features(plugin: Any) -> None:
    """Of grey images and of coloured ones, also where the rest is in float64."""
    for channels, x64 in ((1, False), (3, True)):
        with jax.enable_x64(x64):
            found = _extract(plugin, _images(channels))
        require_like(found, np.zeros((3, plugin.num_features), np.float32), plugin, "features of 3 images")
        require_finite(found, plugin, "features")


def each_image_has_its_own(plugin: Any) -> None:
    """Whatever images are beside it; and different images differ."""
    images = _images()
    found = _extract(plugin, images)
    scale = float(np.abs(found).max())
    moved = _extract(plugin, images[::-1])[::-1]
    require_close(
        moved, found, plugin, "the order of the batch changes an image's features", 0.0, 1e-4 * scale
    )
    require(np.abs(found[0] - found[1]).max() > 1e-3 * scale, plugin, "two images have the same features")


def grey_is_colour_without_colour(plugin: Any) -> None:
    """An image of one channel has the features of three such channels."""
    grey, images = _extract(plugin, _images()), np.repeat(_images(), 3, axis=-1)
    scale = float(np.abs(grey).max())
    require_close(
        _extract(plugin, images), grey, plugin, "three equal channels are not as one", 0.0, 1e-4 * scale
    )


def weights_are_arguments(plugin: Any) -> None:
    """What `load` gives is a pytree of arrays, as constants would take minutes to compile."""
    leaves = jax.tree.leaves(_loaded(plugin))
    arrays = all(isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves)
    require(leaves and arrays, plugin, "load() gives no pytree of its weights: use jax.tree_util.Partial")


CHECKS = (
    names_tell_them_from_others,
    weights_are_arguments,
    they_are_float32_and_num_features,
    each_image_has_its_own,
    grey_is_colour_without_colour,
)
