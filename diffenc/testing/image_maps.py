"""What encoders and networks keep alike: functions of images and their noise levels, with parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffenc.interfaces import NO_CONTEXT, Context
from diffenc.testing.assertions import require, require_close, require_equal, require_finite, require_like
from diffenc.testing.make_inputs import (
    IMAGE_SHAPE,
    LOG_SNR,
    classes_of,
    image_keys,
    images,
    init_of,
    kept,
    key,
    quick,
    require_trainable,
    subject,
)

Shape = tuple[int, ...]
ORDER = np.array([2, 0, 3, 1])
NEAR = {"rtol": 1e-5, "atol": 1e-5}  # what the order of sums may do to float32


def the_output_is_shaped_like_the_image(plugin: Any, image_shape: Shape = IMAGE_SHAPE) -> None:
    """And of its dtype."""
    it = subject(plugin, image_shape)
    require_like(it.apply(it.params, it.x, it.log_snr, NO_CONTEXT), it.x, plugin, "the output")


def its_parameters_can_be_trained(plugin: Any, image_shape: Shape = IMAGE_SHAPE) -> None:
    """A pytree of float32 arrays, of any shape, whose structure is the same at each call of `init`."""
    x = jnp.zeros((1, *image_shape))
    require_trainable(plugin, x, jnp.zeros(1))


def parameters_come_from_key_and_shapes(plugin: Any, image_shape: Shape = IMAGE_SHAPE) -> None:
    """The same key gives the same, whatever the images; and they are finite."""
    it, traced_anew = subject(plugin, image_shape), quick(init_of(plugin))
    params = it.init(key(), it.x, it.log_snr)
    require_finite(params, plugin, "a first parameter")
    others = jnp.asarray(images(image_shape, seed=1), it.x.dtype)
    again, of_others = traced_anew(key(), it.x, it.log_snr), it.init(key(), others, it.log_snr + 1)
    for one, same, other in zip(*map(jax.tree.leaves, (params, again, of_others)), strict=True):
        require_equal(same, one, plugin, "the same key gives other parameters")
        require_equal(other, one, plugin, "init looks at the images, not at their shape alone")


def values_and_derivatives_are_finite(plugin: Any, image_shape: Shape = IMAGE_SHAPE) -> None:
    """For log_snr in [-15, 15]: the value, its slope in log_snr, and the gradients of both."""
    found = derivatives(plugin, image_shape)
    require_finite(found, plugin, "a value or derivative for log_snr in [-15, 15]")


@kept(plugins=32)
def derivatives(plugin: Any, image_shape: Shape) -> Any:
    """((gradients in parameters, images and log_snr), (value, slope))."""

    def total(params, x, log_snr):
        f = lambda v: plugin.apply(params, x, v, NO_CONTEXT)  # noqa: E731
        value, slope = jax.jvp(f, (log_snr,), (jnp.ones_like(log_snr),))
        return jnp.sum(jnp.sin(value) + value * slope), (value, slope)

    it = subject(plugin, image_shape)
    return quick(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(it.params, it.x, it.log_snr)


def no_image_sees_another(plugin: Any, image_shape: Shape = IMAGE_SHAPE) -> None:
    """In another order, and beside another image, each has the output it had."""
    it = subject(plugin, image_shape)
    out = np.asarray(it.apply(it.params, it.x, it.log_snr, NO_CONTEXT))
    moved = it.apply(it.params, it.x[ORDER], it.log_snr[ORDER], NO_CONTEXT)
    require_close(moved, out[ORDER], plugin, "the order of the batch changes an image's output", **NEAR)
    beside = it.apply(it.params, it.x.at[1].set(0.9), it.log_snr.at[1].set(0.0), NO_CONTEXT)
    others = [0, 2, 3]
    require_close(
        beside[np.array(others)], out[others], plugin, "another image changes an image's output", **NEAR
    )


def a_class_is_that_of_its_image(plugin: Any, image_shape: Shape = IMAGE_SHAPE) -> None:
    """Condition 0 is as none. What is not `ClassConditional`, or has `classes = 0`, ignores the condition."""
    it, count = subject(plugin, image_shape), classes_of(plugin)

    def apply(*condition: int) -> np.ndarray:
        context = Context(jnp.asarray(condition, jnp.int32))
        return np.asarray(it.apply(it.params, it.x, it.log_snr, context))

    bare, last = np.asarray(it.apply(it.params, it.x, it.log_snr, NO_CONTEXT)), max(count, 1)
    told = apply(0, 1, last, 0)
    if count == 0:
        require_close(
            told,
            bare,
            plugin,
            "it declares no `classes` (see diffenc.interfaces.ClassConditional), and reads the condition",
            **NEAR,
        )
        return
    require_close(told[[0, 3]], bare[[0, 3]], plugin, "condition 0 is not as no condition", **NEAR)
    for image in (1, 2):
        require(
            np.any(told[image] != bare[image]),
            plugin,
            "it declares `classes`, and a class changes nothing",
        )
    changed = apply(0, 0, last, 0)
    require_close(
        changed[[0, 2, 3]], told[[0, 2, 3]], plugin, "another image's class changes an output", **NEAR
    )


def a_key_draws_its_images_mask(plugin: Any, image_shape: Shape = IMAGE_SHAPE) -> None:
    """The same key the same mask, whatever the rest of the batch; no key, and there is no chance in it."""
    it, keys = subject(plugin, image_shape), image_keys(0)
    traced_anew = quick(lambda *inputs: plugin.apply(*inputs))
    first = np.asarray(it.apply(it.params, it.x, it.log_snr, Context(keys=keys)))
    again = traced_anew(it.params, it.x, it.log_snr, Context(keys=keys))
    require_equal(again, first, plugin, "the same keys give another output")
    bare, bare_again = (apply(it.params, it.x, it.log_snr, NO_CONTEXT) for apply in (it.apply, traced_anew))
    require_equal(bare_again, bare, plugin, "without keys the output is another each time")
    moved = it.apply(it.params, it.x[ORDER], it.log_snr[ORDER], Context(keys=keys[ORDER]))
    require_close(moved, first[ORDER], plugin, "an image's mask is not that of its key alone", **NEAR)
    one_other = jnp.where(jnp.arange(len(LOG_SNR)) == 1, image_keys(1), keys)
    beside = it.apply(it.params, it.x, it.log_snr, Context(keys=one_other))
    others = np.array([0, 2, 3])
    require_close(
        beside[others], first[others], plugin, "another image's key changes an image's mask", **NEAR
    )


CHECKS = (
    its_parameters_can_be_trained,
    the_output_is_shaped_like_the_image,
    parameters_come_from_key_and_shapes,
    values_and_derivatives_are_finite,
    no_image_sees_another,
    a_class_is_that_of_its_image,
    a_key_draws_its_images_mask,
)
