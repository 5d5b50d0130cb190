"""What every parameterization keeps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffenc.testing import coefficients
from diffenc.testing.assertions import require, require_close

LEAST = 1e-6  # of |q alpha - p sigma|, beside the larger of p and q


def it_gives_p_and_q(plugin: Any) -> None:
    """Two arrays, in this order."""
    given = plugin(jnp.asarray([0.0]))
    require(isinstance(given, tuple) and len(given) == 2, plugin, "it does not give a pair (p, q)")


def z_and_output_tell_x_phi_and_eps(plugin: Any) -> None:
    """p x_phi + q eps and z = alpha x_phi + sigma eps are two equations: q alpha - p sigma is not 0. In float64."""
    log_snr, truth = coefficients.LOG_SNR, np.array([0.7, -1.1])
    alpha, sigma = 1 / np.sqrt(1 + np.exp(-log_snr)), 1 / np.sqrt(1 + np.exp(log_snr))
    with jax.enable_x64(True):
        p, q = map(np.asarray, plugin(jnp.asarray(log_snr)))
    for i, at in enumerate(log_snr):
        equations = np.array([[alpha[i], sigma[i]], [p[i], q[i]]])
        determinant = abs(np.linalg.det(equations)) / max(abs(p[i]), abs(q[i]), LEAST)
        told = determinant > LEAST * min(alpha[i], sigma[i])
        require(told, plugin, f"z and the output do not tell x_phi: q alpha - p sigma = 0 at log_snr = {at}")
        solved = np.linalg.solve(equations, equations @ truth)
        require_close(solved, truth, plugin, f"z and the output do not tell x_phi at log_snr = {at}", 1e-9)


CHECKS = (it_gives_p_and_q, *coefficients.CHECKS, z_and_output_tell_x_phi_and_eps)
