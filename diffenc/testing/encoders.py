"""Conformance checks of encoders."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffenc.interfaces import NO_CONTEXT, Context, Data, ImageKeys, LogSNR
from diffenc.testing import image_maps
from diffenc.testing.assertions import require, require_close, require_like
from diffenc.testing.image_maps import Shape
from diffenc.testing.make_inputs import IMAGE_SHAPE, Subject, image_keys, quick_jit, subject

STEP = 1e-4  # of log_snr
NO_NOISE = 15.0  # log_snr


def slope_agrees_with_differences(plugin: Any, image_shape: Shape = IMAGE_SHAPE) -> None:
    """Requires jax.jvp's d x_phi / d lambda to agree with finite differences, in float64, with and without dropout."""
    with jax.enable_x64(True):
        it = subject(plugin, image_shape, x64=True)
        for keys in (None, image_keys(7)):
            encode = functools.partial(_encode, plugin, it, keys)
            slope = quick_jit(lambda v, f=encode: jax.jvp(f, (v,), (jnp.ones_like(v),))[1])(it.log_snr)
            require_like(slope, it.x, plugin, "the slope for float64 inputs")
            # Richardson extrapolation; `fine - coarse` bounds the error that is left
            at = [np.asarray(quick_jit(encode)(it.log_snr + step * STEP)) for step in (-2, -1, 1, 2)]
            coarse = (at[2] - at[1]) / (2 * STEP)
            fine = (4 * coarse - (at[3] - at[0]) / (4 * STEP)) / 3
            error = np.abs(slope - fine) - np.abs(fine - coarse)  # less the error of the differences
            message = f"jax.jvp's slope is off by {error.max():.1e} from differences of the value"
            require(np.all(error < 1e-9), plugin, message)


def _encode(plugin: Any, it: Subject, keys: ImageKeys | None, log_snr: LogSNR) -> Data:
    return plugin.apply(it.params, it.x, log_snr, Context(keys=keys))


def encoding_without_noise_is_the_image(plugin: Any, image_shape: Shape = IMAGE_SHAPE) -> None:
    """Requires x_phi = x where alpha = 1, since the reconstruction term assumes it."""
    it = subject(plugin, image_shape)
    params = it.init(jax.random.key(1), it.x, it.log_snr)
    for state in (params, it.params):
        encoded = it.apply(state, it.x, jnp.full_like(it.log_snr, NO_NOISE), NO_CONTEXT)
        require_close(
            encoded, it.x, plugin, "x_phi is not x at log_snr = 15, where there is no noise", 0.0, 2e-6
        )


CHECKS = (
    *image_maps.CHECKS,
    slope_agrees_with_differences,
    encoding_without_noise_is_the_image,
)
