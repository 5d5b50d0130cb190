"""Conformance checks of networks."""

from typing import Any

import numpy as np

from diffenc.core.parameters import name_leaves
from diffenc.interfaces import NO_CONTEXT
from diffenc.testing import image_maps
from diffenc.testing.assertions import require
from diffenc.testing.image_maps import Shape
from diffenc.testing.make_inputs import IMAGE_SHAPE, subject


def gradients_reach_every_parameter(plugin: Any, image_shape: Shape = IMAGE_SHAPE) -> None:
    """Requires a gradient in every parameter, and an output that depends on image and noise level."""
    (params, z, log_snr), _ = image_maps.derivatives(plugin, image_shape)
    for name, leaf in name_leaves(params).items():
        require(np.any(leaf), plugin, f"no gradient reaches the parameter {name}")
    require(np.any(z), plugin, "the output does not depend on z")
    require(np.any(log_snr), plugin, "the output does not depend on log_snr")


def output_depends_on_noise_level(plugin: Any, image_shape: Shape = IMAGE_SHAPE) -> None:
    """Requires that 0.5 more of log_snr changes the output of each image."""
    it = subject(plugin, image_shape)
    change = np.abs(
        it.apply(it.params, it.x, it.log_snr + 0.5, NO_CONTEXT)
        - it.apply(it.params, it.x, it.log_snr, NO_CONTEXT)
    )
    # each image by its largest change, since single pixels may well be insensitive
    smallest = np.min(np.max(change.reshape(len(change), -1), axis=1))
    require(smallest > 1e-4, plugin, f"0.5 more of log_snr changes an image's output by only {smallest:.1e}")


CHECKS = (*image_maps.CHECKS, gradients_reach_every_parameter, output_depends_on_noise_level)
