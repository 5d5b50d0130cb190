"""Conformance checks of parameterizations."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffenc.testing import coefficients
from diffenc.testing.assertions import require, require_close

MIN_DETERMINANT = 1e-6  # of |q alpha - p sigma|, relative to max(|p|, |q|) and min(alpha, sigma)


def returns_a_pair(plugin: Any) -> None:
    """Requires a pair (p, q)."""
    result = plugin(jnp.asarray([0.0]))
    require(isinstance(result, tuple) and len(result) == 2, plugin, "it does not return a pair (p, q)")


def z_and_output_determine_x_phi_and_eps(plugin: Any) -> None:
    """Requires that z = alpha x_phi + sigma eps and p x_phi + q eps have one solution: q alpha - p sigma != 0."""
    log_snr, truth = coefficients.LOG_SNR, np.array([0.7, -1.1])
    alpha, sigma = 1 / np.sqrt(1 + np.exp(-log_snr)), 1 / np.sqrt(1 + np.exp(log_snr))
    with jax.enable_x64(True):
        p, q = map(np.asarray, plugin(jnp.asarray(log_snr)))
    for i, value in enumerate(log_snr):
        equations = np.array([[alpha[i], sigma[i]], [p[i], q[i]]])
        determinant = abs(np.linalg.det(equations)) / max(abs(p[i]), abs(q[i]), MIN_DETERMINANT)
        solvable = determinant > MIN_DETERMINANT * min(alpha[i], sigma[i])
        message = f"z and the output do not determine x_phi at log_snr = {value}"
        require(solvable, plugin, f"{message}: q alpha - p sigma = 0")
        solved = np.linalg.solve(equations, equations @ truth)
        require_close(solved, truth, plugin, message, 1e-9)


CHECKS = (returns_a_pair, *coefficients.CHECKS, z_and_output_determine_x_phi_and_eps)
