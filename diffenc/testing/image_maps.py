"""Checks shared by encoders and networks: functions of images and noise levels, with parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffenc.core.parameters import name_leaves
from diffenc.interfaces import NO_CONTEXT, Context, PreparedOnce
from diffenc.testing.assertions import require, require_close, require_equal, require_finite, require_like
from diffenc.testing.make_inputs import (
    IMAGE_SHAPE,
    LOG_SNR,
    cached_per_plugin,
    checked_init,
    image_keys,
    images,
    key,
    num_classes_of,
    quick_jit,
    require_trainable,
    subject,
)

Shape = tuple[int, ...]
ORDER = np.array([2, 0, 3, 1])
TOL = {"rtol": 1e-5, "atol": 1e-5}  # float32 rounding under another order of summation


def output_matches_the_image(plugin: Any, image_shape: Shape = IMAGE_SHAPE) -> None:
    """Requires an output with the shape and dtype of the image."""
    it = subject(plugin, image_shape)
    require_like(it.apply(it.params, it.x, it.log_snr, NO_CONTEXT), it.x, plugin, "the output")


def parameters_are_trainable(plugin: Any, image_shape: Shape = IMAGE_SHAPE) -> None:
    """Requires a pytree of float32 arrays of the same structure at each call of `init`."""
    x = jnp.zeros((1, *image_shape))
    require_trainable(plugin, x, jnp.zeros(1))


def init_depends_only_on_key_and_shapes(plugin: Any, image_shape: Shape = IMAGE_SHAPE) -> None:
    """Requires finite parameters that are equal for equal keys, also for other images."""
    it, init_traced_again = subject(plugin, image_shape), quick_jit(checked_init(plugin))
    params = it.init(key(), it.x, it.log_snr)
    require_finite(params, plugin, "an initial parameter")
    others = jnp.asarray(images(image_shape, seed=1), it.x.dtype)
    again, of_others = init_traced_again(key(), it.x, it.log_snr), it.init(key(), others, it.log_snr + 1)
    for one, same, other in zip(*map(jax.tree.leaves, (params, again, of_others)), strict=True):
        require_equal(same, one, plugin, "the same key gives other parameters")
        require_equal(other, one, plugin, "init depends on the images: use their shape only")


def values_and_derivatives_are_finite(plugin: Any, image_shape: Shape = IMAGE_SHAPE) -> None:
    """Requires finite values, slopes in log_snr and gradients of both for log_snr in [-15, 15]."""
    found = derivatives(plugin, image_shape)
    require_finite(found, plugin, "a value or derivative for log_snr in [-15, 15]")


@cached_per_plugin(plugins=32)
def derivatives(plugin: Any, image_shape: Shape) -> Any:
    """Returns ((gradients in parameters, images and log_snr), (value, slope))."""

    def total(params, x, log_snr):
        f = lambda v: plugin.apply(params, x, v, NO_CONTEXT)  # noqa: E731
        value, slope = jax.jvp(f, (log_snr,), (jnp.ones_like(log_snr),))
        return jnp.sum(jnp.sin(value) + value * slope), (value, slope)

    it = subject(plugin, image_shape)
    return quick_jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(it.params, it.x, it.log_snr)


def outputs_ignore_other_images(plugin: Any, image_shape: Shape = IMAGE_SHAPE) -> None:
    """Requires that neither the order of the batch nor another image changes the output of an image."""
    it = subject(plugin, image_shape)
    out = np.asarray(it.apply(it.params, it.x, it.log_snr, NO_CONTEXT))
    permuted = it.apply(it.params, it.x[ORDER], it.log_snr[ORDER], NO_CONTEXT)
    require_close(permuted, out[ORDER], plugin, "the order of the batch changes an image's output", **TOL)
    replaced = it.apply(it.params, it.x.at[1].set(0.9), it.log_snr.at[1].set(0.0), NO_CONTEXT)
    others = [0, 2, 3]
    require_close(
        replaced[np.array(others)], out[others], plugin, "another image changes an image's output", **TOL
    )


def outputs_follow_their_own_class(plugin: Any, image_shape: Shape = IMAGE_SHAPE) -> None:
    """Requires each output to depend on the class of its own image only; condition 0 equals no condition.

    A plugin that is not `ClassConditional`, or has `classes = 0`, must ignore the condition.
    """
    it, count = subject(plugin, image_shape), num_classes_of(plugin)

    def apply(*condition: int) -> np.ndarray:
        context = Context(jnp.asarray(condition, jnp.int32))
        return np.asarray(it.apply(it.params, it.x, it.log_snr, context))

    bare, last = np.asarray(it.apply(it.params, it.x, it.log_snr, NO_CONTEXT)), max(count, 1)
    labelled = apply(0, 1, last, 0)
    if count == 0:
        require_close(
            labelled,
            bare,
            plugin,
            "it reads the condition but declares no `classes` (see diffenc.interfaces.ClassConditional)",
            **TOL,
        )
        return
    require_close(labelled[[0, 3]], bare[[0, 3]], plugin, "condition 0 differs from no condition", **TOL)
    for image in (1, 2):
        require(
            np.any(labelled[image] != bare[image]),
            plugin,
            "it declares `classes` but a class changes nothing",
        )
    changed = apply(0, 0, last, 0)
    require_close(
        changed[[0, 2, 3]], labelled[[0, 2, 3]], plugin, "another image's class changes an output", **TOL
    )


def masks_follow_their_own_key(plugin: Any, image_shape: Shape = IMAGE_SHAPE) -> None:
    """Requires a dropout mask from each image's own key, and a deterministic output without keys."""
    it, keys = subject(plugin, image_shape), image_keys(0)
    # a lambda has a compilation cache of its own, so that the plugin is traced again
    traced_again = quick_jit(lambda *inputs: plugin.apply(*inputs))
    first = np.asarray(it.apply(it.params, it.x, it.log_snr, Context(keys=keys)))
    again = traced_again(it.params, it.x, it.log_snr, Context(keys=keys))
    require_equal(again, first, plugin, "the same keys give another output")
    bare, bare_again = (apply(it.params, it.x, it.log_snr, NO_CONTEXT) for apply in (it.apply, traced_again))
    require_equal(bare_again, bare, plugin, "the output is random without keys")
    permuted = it.apply(it.params, it.x[ORDER], it.log_snr[ORDER], Context(keys=keys[ORDER]))
    require_close(permuted, first[ORDER], plugin, "an image's mask depends on more than its own key", **TOL)
    one_other = jnp.where(jnp.arange(len(LOG_SNR)) == 1, image_keys(1), keys)
    replaced = it.apply(it.params, it.x, it.log_snr, Context(keys=one_other))
    others = np.array([0, 2, 3])
    require_close(
        replaced[others], first[others], plugin, "another image's key changes an image's mask", **TOL
    )


def apply_equals_at_of_prepare(plugin: Any, image_shape: Shape = IMAGE_SHAPE) -> None:
    """Requires of a PreparedOnce that `apply` equals `at` of the result of `prepare`, at any noise level.

    Also requires that `prepare` returns an entry for each image, so that the entries of some images encode these images.
    """
    it, classes = subject(plugin, image_shape), num_classes_of(plugin)
    if not isinstance(plugin, PreparedOnce):
        return
    condition = jnp.arange(len(it.x), dtype=jnp.int32) % (classes + 1)
    for context in (NO_CONTEXT, Context(keys=image_keys(7)), Context(condition, image_keys(7))):
        prepared = quick_jit(plugin.prepare)(it.params, it.x, context)
        for log_snr in (it.log_snr, it.log_snr[::-1]):
            whole, split = (
                it.apply(it.params, it.x, log_snr, context),
                quick_jit(plugin.at)(it.params, prepared, log_snr),
            )
            require_close(split, whole, plugin, "`at` of `prepare` differs from `apply`", 1e-6, 1e-6)
        for name, leaf in name_leaves(prepared).items():
            require(
                leaf.shape[:1] == (len(it.x),),
                plugin,
                f"`prepare` returns {name}, which is no entry for each image",
            )
        some = jax.tree.map(lambda leaf: leaf[::2], prepared)
        part = quick_jit(plugin.at)(it.params, some, it.log_snr[::2])
        require_close(
            part,
            it.apply(it.params, it.x, it.log_snr, context)[::2],
            plugin,
            "`at` of entries of `prepare` encodes other images",
            1e-6,
            1e-6,
        )


CHECKS = (
    parameters_are_trainable,
    output_matches_the_image,
    init_depends_only_on_key_and_shapes,
    values_and_derivatives_are_finite,
    outputs_ignore_other_images,
    outputs_follow_their_own_class,
    masks_follow_their_own_key,
    apply_equals_at_of_prepare,
)
