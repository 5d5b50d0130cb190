"""What every network keeps."""

from typing import Any

import numpy as np

from diffenc.core.parameters import name_leaves
from diffenc.interfaces import NO_CONTEXT
from diffenc.testing import image_maps
from diffenc.testing.assertions import require
from diffenc.testing.image_maps import Shape
from diffenc.testing.make_inputs import IMAGE_SHAPE, subject


def every_parameter_is_reached(plugin: Any, image_shape: Shape = IMAGE_SHAPE) -> None:
    """By gradients, from an output that depends on image and noise level."""
    (params, z, log_snr), _ = image_maps.derivatives(plugin, image_shape)
    for name, leaf in name_leaves(params).items():
        require(np.any(leaf), plugin, f"no gradient reaches the parameter {name}")
    require(np.any(z), plugin, "the output does not depend on z")
    require(np.any(log_snr), plugin, "the output does not depend on log_snr")


def every_image_sees_its_noise_level(plugin: Any, image_shape: Shape = IMAGE_SHAPE) -> None:
    """Half a unit of log_snr changes each output."""
    it = subject(plugin, image_shape)
    change = np.abs(
        it.apply(it.params, it.x, it.log_snr + 0.5, NO_CONTEXT)
        - it.apply(it.params, it.x, it.log_snr, NO_CONTEXT)
    )
    least = np.min(np.max(change.reshape(len(change), -1), axis=1))
    require(least > 1e-4, plugin, f"0.5 more of log_snr changes an image's output by {least:.1e} at most")


CHECKS = (*image_maps.CHECKS, every_parameter_is_reached, every_image_sees_its_noise_level)
