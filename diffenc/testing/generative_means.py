"""Conformance checks of generative means."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from diffenc.testing import coefficients
from diffenc.testing.assertions import require


def kappa_is_above_minus_one(plugin: Any) -> None:
    """Requires kappa > -1, so that x_hat* = E[x_phi + d x_phi / d lambda | z] / (1 + kappa) is defined."""
    lowest = np.min(plugin(jnp.asarray(coefficients.LOG_SNR, jnp.float32)))
    require(lowest > -1, plugin, f"kappa = {lowest} for some log_snr in [-15, 15]: must be above -1")


CHECKS = (*coefficients.CHECKS, kappa_is_above_minus_one)
