"""What every generative mean keeps."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from diffenc.testing import coefficients
from diffenc.testing.assertions import require


def the_best_estimate_is_defined(plugin: Any) -> None:
    """x_hat* = E[x_phi + d x_phi / d lambda | z] / (1 + kappa), so kappa > -1."""
    least = np.min(plugin(jnp.asarray(coefficients.LOG_SNR, jnp.float32)))
    require(least > -1, plugin, f"kappa = {least} for some log_snr in [-15, 15]: must be above -1")


CHECKS = (*coefficients.CHECKS, the_best_estimate_is_defined)
